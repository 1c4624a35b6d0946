/* The canonical form of a record, read in one pass and without doubt: what is accepted here,
 * ledger/core/records.py accepts, with the same values. What is not, that module judges and names.
 *
 * Fields must come in the declared order, which is the canonical one; so none can come twice, and the bytes
 * equal what encoding them again would give. Text is accepted only in characters that JSON spells plainly:
 * ASCII without controls, quotes and backslashes. Every function advances the cursor past what it read, or
 * returns 0; none reads at or beyond `end`. */
#include "native.h"

#include <string.h>

#define MAX_SAFE_INTEGER ((UINT64_C(1) << 53) - 1)
#define MAX_NAME 256
#define MAX_SLUG 64
#define MAX_REASON 32
#define MAX_METRICS 32
#define UUID_SIZE 36

typedef struct {
    const uint8_t *at, *end;
} Cursor;

/* --- characters ---------------------------------------------------------------------------------------- */

enum { HEX = 1, LOWER = 2, ALNUM = 4, SLUG_MORE = 8, PLAIN = 16 };

#define D (HEX | ALNUM | PLAIN)
#define H (HEX | LOWER | ALNUM | PLAIN)
#define L (LOWER | ALNUM | PLAIN)
#define U (ALNUM | PLAIN)
#define M (SLUG_MORE | PLAIN)
#define P PLAIN
static const uint8_t CLASS[256] = {
    [0x20] = P, P, 0, P, P, P, P, P, P, P, P, P, P, M, M, P, /*  !"#$%&'()*+,-./ */
    D, D, D, D, D, D, D, D, D, D, M, P, P, P, P, P,          /* 0123456789:;<=>? */
    P, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U,          /* @ABCDEFGHIJKLMNO */
    U, U, U, U, U, U, U, U, U, U, U, P, 0, P, P, M,          /* PQRSTUVWXYZ[\]^_ */
    P, H, H, H, H, H, H, L, L, L, L, L, L, L, L, L,          /* `abcdefghijklmno */
    L, L, L, L, L, L, L, L, L, L, L, P, P, P, M, 0,          /* pqrstuvwxyz{|}~  */
};
#undef D
#undef H
#undef L
#undef U
#undef M
#undef P

static inline int is(uint8_t c, int classes) { return CLASS[c] & classes; }

static inline uint8_t nibble(uint8_t hex) { return (uint8_t)(hex <= '9' ? hex - '0' : hex - 'a' + 10); }

/* --- pieces -------------------------------------------------------------------------------------------- */

static inline int literal(Cursor *c, const char *text, size_t size) {
    if ((size_t)(c->end - c->at) < size || memcmp(c->at, text, size) != 0)
        return 0;
    c->at += size;
    return 1;
}

#define LITERAL(c, text) literal((c), (text), sizeof(text) - 1)
#define KEY(c, name) LITERAL((c), "\"" name "\":")

/* After a value: a comma, which is passed, or the brace that ends the object, which is not. */
static inline int next(Cursor *c) {
    if (c->at == c->end)
        return 0;
    if (*c->at == ',') {
        c->at++;
        return 1;
    }
    return *c->at == '}';
}

/* The end of an object that had at least one field. */
static inline int closed(Cursor *c) {
    if (c->at == c->end || *c->at != '}' || c->at[-1] == ',')
        return 0;
    c->at++;
    return 1;
}

/* 0 to 2^53 - 1 in its shortest form. */
static inline int amount(Cursor *c, uint64_t *out) {
    const uint8_t *at = c->at;
    uint64_t value = 0;
    if (at != c->end && *at == '0') {
        at++;
    } else {
        const uint8_t *last = c->end - at > 16 ? at + 16 : c->end; /* 2^53 - 1 has 16 digits */
        for (; at != last && (uint8_t)(*at - '0') < 10; at++)
            value = value * 10 + (uint8_t)(*at - '0');
        if (at == c->at || value > MAX_SAFE_INTEGER)
            return 0;
    }
    c->at = at; /* a digit more is no comma and no brace */
    *out = value;
    return 1;
}

static inline int known_amount(Cursor *c, Amount *out) {
    out->known = 1;
    return amount(c, &out->value) && next(c);
}

/* A string of 1 to `most` characters: one of `first`, then of `more`. */
static inline int text(Cursor *c, int first, int more, size_t most, Text *out) {
    if (!LITERAL(c, "\""))
        return 0;
    const uint8_t *at = c->at;
    if (at == c->end || !is(*at, first))
        return 0;
    do
        at++;
    while (at != c->end && is(*at, more));
    if (at == c->end || *at != '"' || (size_t)(at - c->at) > most)
        return 0;
    out->at = c->at;
    out->size = (size_t)(at - c->at);
    c->at = at + 1;
    return 1;
}

static inline int slug(Cursor *c, Text *out) { return text(c, ALNUM, ALNUM | SLUG_MORE, MAX_SLUG, out); }

/* 32 bytes as lower-case hex. */
static inline int hex32(Cursor *c, Text *out) {
    if (c->end - c->at < HEX_SIZE + 2 || c->at[0] != '"' || c->at[HEX_SIZE + 1] != '"')
        return 0;
    const uint8_t *at = c->at + 1;
    unsigned bad = 0;
    for (int i = 0; i < HEX_SIZE; i++) /* without a way out, so that it is done 16 at a time */
        bad |= (unsigned)((uint8_t)(at[i] - '0') >= 10) & (unsigned)((uint8_t)(at[i] - 'a') >= 6);
    if (bad)
        return 0;
    out->at = at;
    out->size = HEX_SIZE;
    c->at = at + HEX_SIZE + 1;
    return 1;
}

/* A UUID of version 7 (RFC 9562), lower case. */
static int uuid7(Cursor *c, uint8_t out[ID_SIZE], Text *text) {
    static const uint8_t places[ID_SIZE] = {0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34};
    if (c->end - c->at < UUID_SIZE + 2 || c->at[0] != '"' || c->at[UUID_SIZE + 1] != '"')
        return 0;
    const uint8_t *at = c->at + 1;
    if (at[8] != '-' || at[13] != '-' || at[18] != '-' || at[23] != '-' || at[14] != '7')
        return 0;
    for (int i = 0; i < ID_SIZE; i++) {
        uint8_t high = at[places[i]], low = at[places[i] + 1];
        if (!is(high, HEX) || !is(low, HEX))
            return 0;
        out[i] = (uint8_t)(nibble(high) << 4 | nibble(low));
    }
    if (out[8] >> 6 != 2)
        return 0;
    text->at = at;
    text->size = UUID_SIZE;
    c->at += UUID_SIZE + 2;
    return 1;
}

/* --- objects ------------------------------------------------------------------------------------------- */

static int usage(Cursor *c, Record *r) {
    if (!LITERAL(c, "{"))
        return 0;
    if (KEY(c, "accepted_tokens") && !known_amount(c, &r->accepted_tokens))
        return 0;
    if (KEY(c, "cached_input_tokens") && !known_amount(c, &r->cached_input_tokens))
        return 0;
    if (KEY(c, "drafted_tokens") && !known_amount(c, &r->drafted_tokens))
        return 0;
    if (!KEY(c, "input_tokens") || !amount(c, &r->input_tokens) || !next(c))
        return 0;
    if (!KEY(c, "output_tokens") || !amount(c, &r->output_tokens) || !next(c))
        return 0;
    if (KEY(c, "reasoning_tokens") && !known_amount(c, &r->reasoning_tokens))
        return 0;
    if (r->cached_input_tokens.known && r->cached_input_tokens.value > r->input_tokens)
        return 0;
    return closed(c);
}

static int commitment(Cursor *c, Text *digest, Text *of) {
    if (!LITERAL(c, "{\"digest\":") || !hex32(c, digest) || !LITERAL(c, ",\"of\":\""))
        return 0;
    of->at = c->at;
    of->size = sizeof "tokens" - 1;
    if (LITERAL(c, "tokens\"}"))
        return 1;
    of->size = sizeof "text" - 1;
    return LITERAL(c, "text\"}");
}

static int energy(Cursor *c, Record *r) {
    const Amount *const low = &r->stated_low_uj, *const high = &r->stated_high_uj;
    if (!LITERAL(c, "{\"energy_uj\":") || !amount(c, &r->energy_uj) || !next(c))
        return 0;
    if (KEY(c, "high_uj") && !known_amount(c, &r->stated_high_uj))
        return 0;
    if (KEY(c, "low_uj") && !known_amount(c, &r->stated_low_uj))
        return 0;
    if (!KEY(c, "method") || !LITERAL(c, "\""))
        return 0;
    r->energy_method.at = c->at;
    if (LITERAL(c, "measured\""))
        r->method = MEASURED;
    else if (LITERAL(c, "modelled\""))
        r->method = MODELLED;
    else if (LITERAL(c, "estimated\""))
        r->method = ESTIMATED;
    else
        return 0;
    r->energy_method.size = (size_t)(c->at - 1 - r->energy_method.at);
    if (!LITERAL(c, ",\"source\":") || !text(c, PLAIN, PLAIN, MAX_NAME, &r->energy_source))
        return 0;
    r->energy_low_uj = low->known ? low->value : r->energy_uj;
    r->energy_high_uj = high->known ? high->value : r->energy_uj;
    if (r->energy_low_uj > r->energy_uj || r->energy_high_uj < r->energy_uj)
        return 0;
    return closed(c);
}

static int metric(Cursor *c) {
    uint64_t scale, value;
    if (!LITERAL(c, "{\"scale\":") || !amount(c, &scale) || scale > 9 || !LITERAL(c, ",\"value\":"))
        return 0;
    const int negative = LITERAL(c, "-");
    return amount(c, &value) && !(negative && value == 0) && LITERAL(c, "}");
}

/* Metrics by name, names ascending. */
static int quality(Cursor *c, Record *r) {
    Text last = {NULL, 0}, name;
    r->quality.at = c->at;
    if (!LITERAL(c, "{"))
        return 0;
    for (int count = 1; count <= MAX_METRICS; count++) {
        if (!slug(c, &name))
            return 0;
        if (last.at) {
            const size_t least = name.size < last.size ? name.size : last.size;
            const int order = memcmp(last.at, name.at, least);
            if (order > 0 || (order == 0 && last.size >= name.size))
                return 0;
        }
        last = name;
        if (!LITERAL(c, ":") || !metric(c))
            return 0;
        if (LITERAL(c, "}")) {
            r->quality.size = (size_t)(c->at - r->quality.at);
            r->metrics = (size_t)count;
            return 1;
        }
        if (!LITERAL(c, ","))
            return 0;
    }
    return 0;
}

void next_metric(const uint8_t **from, Metric *m) {
    const uint8_t *at = *from + 2; /* past the brace or comma, and the quote */
    m->name.at = at;
    while (*at != '"')
        at++;
    m->name.size = (size_t)(at - m->name.at);
    at += sizeof "\":{\"scale\":" - 1;
    m->scale = *at - '0';
    at += sizeof "0,\"value\":" - 1;
    const int negative = *at == '-';
    int64_t value = 0;
    for (at += negative; *at != '}'; at++)
        value = value * 10 + (*at - '0');
    m->value = negative ? -value : value;
    *from = at + 1;
}

int record_parse(const uint8_t *data, size_t size, Record *r) {
    Cursor cursor = {data, data + size}, *c = &cursor;
    Amount *const first = &r->first_token_us;
    Text *const reason = &r->finish_reason;
    uint8_t parent[ID_SIZE];
    memset(r, 0, sizeof *r);
    if (size > MAX_RECORD_BYTES || !LITERAL(c, "{"))
        return 0;
    if (KEY(c, "carbon_high_ng") && !known_amount(c, &r->carbon_high_ng))
        return 0;
    if (KEY(c, "carbon_low_ng") && !known_amount(c, &r->carbon_low_ng))
        return 0;
    if (KEY(c, "carbon_market_ng") && !known_amount(c, &r->carbon_market_ng))
        return 0;
    if (KEY(c, "carbon_ng") && !known_amount(c, &r->carbon_ng))
        return 0;
    if (KEY(c, "cost_nano") && !known_amount(c, &r->cost_nano))
        return 0;
    if (KEY(c, "currency")) {
        if (!r->cost_nano.known || c->end - c->at < 5 || c->at[0] != '"' || c->at[4] != '"')
            return 0;
        for (int i = 1; i < 4; i++)
            if (c->at[i] < 'A' || c->at[i] > 'Z')
                return 0;
        r->currency.at = c->at + 1;
        r->currency.size = 3;
        c->at += 5;
        if (!next(c))
            return 0;
    } else if (r->cost_nano.known) {
        return 0;
    }
    if (!KEY(c, "deployment") || !hex32(c, &r->deployment) || !next(c))
        return 0;
    if (KEY(c, "embodied_ng") && !known_amount(c, &r->embodied_ng))
        return 0;
    if (!KEY(c, "ended_us") || !amount(c, &r->ended_us) || !next(c))
        return 0;
    if (KEY(c, "energy") && !(energy(c, r) && next(c)))
        return 0;
    if (KEY(c, "factors") && !(hex32(c, &r->factors) && next(c)))
        return 0;
    if (KEY(c, "finish_reason")) {
        if (!LITERAL(c, "\""))
            return 0;
        reason->at = c->at;
        if (c->at == c->end || !is(*c->at, LOWER))
            return 0;
        while (c->at != c->end && (is(*c->at, LOWER) || *c->at == '_'))
            c->at++;
        reason->size = (size_t)(c->at - reason->at);
        if (reason->size > MAX_REASON || !LITERAL(c, "\"") || !next(c))
            return 0;
    }
    if (KEY(c, "first_token_us") && !known_amount(c, first))
        return 0;
    if (!KEY(c, "id") || !uuid7(c, r->id, &r->id_text) || !next(c))
        return 0;
    if (KEY(c, "input") && !(commitment(c, &r->input_digest, &r->input_of) && next(c)))
        return 0;
    if (KEY(c, "output") && !(commitment(c, &r->output_digest, &r->output_of) && next(c)))
        return 0;
    if (KEY(c, "parent") && !(uuid7(c, parent, &r->parent) && next(c)))
        return 0;
    if (KEY(c, "quality") && !(quality(c, r) && next(c)))
        return 0;
    if (KEY(c, "request") && !(hex32(c, &r->request) && next(c)))
        return 0;
    if (!KEY(c, "started_us") || !amount(c, &r->started_us) || !next(c))
        return 0;
    if (KEY(c, "tenant") && !(slug(c, &r->tenant) && next(c)))
        return 0;
    if (!KEY(c, "usage") || !usage(c, r) || !next(c))
        return 0;
    if (KEY(c, "water_nl") && !known_amount(c, &r->water_nl))
        return 0;
    if (r->started_us > r->ended_us)
        return 0;
    if (first->known && (first->value < r->started_us || first->value > r->ended_us))
        return 0;
    return closed(c) && c->at == c->end;
}
