/* What the files of the optional native part share. See docs/decisions/0012-an-optional-native-part.md.
 *
 * Nothing here knows Python but module.c: bytes in, numbers and bytes out, no allocation, no global state
 * but whether the processor has the SHA extensions.
 */
#ifndef TALLYSTICK_NATIVE_H
#define TALLYSTICK_NATIVE_H

#include <stddef.h>
#include <stdint.h>

/* --- sha256.c: FIPS 180-4, only where the processor has instructions for it --------------------------- */

#define HASH_SIZE 32
#define SHA256_BLOCK 64

typedef struct {
    uint32_t state[8];
    uint64_t size;                /* bytes so far */
    uint8_t rest[SHA256_BLOCK];   /* the last size % 64 of them */
} Sha256;

/* Whether the processor has the instructions. Nothing else of sha256.c may be called if not. */
int sha256_available(void);
void sha256_begin(Sha256 *hash);
void sha256_add(Sha256 *hash, const void *data, size_t size);
void sha256_end(Sha256 *hash, uint8_t out[HASH_SIZE]);

/* A head of fewer than 64 bytes, and what follows it. */
typedef struct {
    const uint8_t *head;
    size_t head_size;
    const uint8_t *body;
    size_t size;
} Message;

/* Both hashes in little more time than one takes. */
void sha256_two(const Message messages[2], uint8_t *const out[2]);

/* RFC 6962 section 2.1: of a leaf, of a node, and of the tree over `count` > 0 hashes, which it overwrites. */
void merkle_leaf(const uint8_t *data, size_t size, uint8_t out[HASH_SIZE]);
void merkle_leaf_two(const uint8_t *const data[2], const size_t size[2], uint8_t *const out[2]);
void merkle_node(const uint8_t *left, const uint8_t *right, uint8_t out[HASH_SIZE]);
void merkle_root(uint8_t *hashes, size_t count, uint8_t out[HASH_SIZE]);

/* RFC 2104 with SHA-256. */
void hmac_sha256(const uint8_t *key, size_t key_size, const uint8_t *data, size_t size, uint8_t out[HASH_SIZE]);

/* --- shake256.c: FIPS 202 ------------------------------------------------------------------------------ */

#define SHAKE256_RATE 136

typedef struct {
    uint64_t lanes[25];
    uint8_t block[SHAKE256_RATE];
    size_t used;                  /* of block */
} Shake256;

/* Absorb all of the input, which must be shorter than SHAKE256_RATE, and be ready to squeeze. */
void shake256_begin(Shake256 *shake, const uint8_t *data, size_t size);
void shake256_squeeze(Shake256 *shake, uint8_t *out, size_t size);

/* --- records.c: the canonical form of one record, as ledger/core/records.py states it ------------------- */

#define ID_SIZE 16
#define HEX_SIZE 64
#define MAX_RECORD_BYTES 16384

typedef struct {
    const uint8_t *at;            /* into the block; NULL if the field is absent */
    size_t size;
} Text;

/* A figure that may be absent. */
typedef struct {
    uint64_t value;
    int known;
} Amount;

typedef enum { NO_ENERGY, MEASURED, MODELLED, ESTIMATED } Method;

/* A record as it states itself; Text is into its bytes. */
typedef struct {
    uint8_t id[ID_SIZE];
    uint64_t started_us, ended_us;
    Amount first_token_us;
    Text id_text, deployment, factors, tenant, finish_reason, request, parent, currency;
    Text input_digest, input_of, output_digest, output_of;
    uint64_t input_tokens, output_tokens;
    Amount cached_input_tokens, reasoning_tokens, drafted_tokens, accepted_tokens;
    Method method;
    Text energy_method, energy_source;
    uint64_t energy_uj, energy_low_uj, energy_high_uj; /* the range is the figure itself where none is stated */
    Amount stated_low_uj, stated_high_uj;
    Amount carbon_ng, carbon_low_ng, carbon_high_ng, carbon_market_ng, embodied_ng, water_nl, cost_nano;
    Text quality;                 /* the whole object */
    size_t metrics;               /* in it */
} Record;

/* A metric of a quality object that record_parse accepted. */
typedef struct {
    Text name;
    int64_t scale, value;
} Metric;

/* Whether `data` is the canonical form of a record that ledger/core/records.py accepts. Yes is certain; no
 * may also mean that it is beyond this parser (escapes, characters beyond ASCII). */
int record_parse(const uint8_t *data, size_t size, Record *record);

/* The metrics of `quality` one by one: `at` begins at its first byte, and each call passes one. */
void next_metric(const uint8_t **at, Metric *metric);

/* --- facts.c: what follows from the records of a batch, as ledger/audit/batches.py computes it -------------- */

#define MAX_BATCH_RECORDS 4096

/* In the order of ledger/audit/tables.py SUMS. */
enum {
    RECORDS, INPUT_TOKENS, OUTPUT_TOKENS, CACHED_RECORDS, CACHED_TOKENS, REASONING_RECORDS, REASONING_TOKENS,
    MEASURED_RECORDS, MODELLED_RECORDS, ESTIMATED_RECORDS, ENERGY, ENERGY_LOW, ENERGY_HIGH, CARBON_RECORDS,
    CARBON, MARKET_RECORDS, MARKET, EMBODIED_RECORDS, EMBODIED, WATER_RECORDS, WATER, SUMS
};

typedef struct {
    uint64_t hour;
    Text tenant, deployment;
    uint64_t sums[SUMS];
} Group;

typedef struct {
    size_t count, groups_count, factors_count, slots;
    uint64_t first_us, last_us;
    int overflow;
    uint8_t *ids;                 /* count of ID_SIZE */
    uint8_t *hashes;              /* count of HASH_SIZE */
    Group *groups;                /* up to count */
    const uint8_t **factors;      /* up to count, different ones */
    uint16_t *table;              /* slots: 1 + index of a group, by the hash of its key */
} Facts;

/* The end of the line that begins at `at`; NULL if no newline follows. */
const uint8_t *line_end(const uint8_t *at, const uint8_t *end);
size_t count_lines(const uint8_t *at, const uint8_t *end);

/* The bytes that the arrays for `count` <= MAX_BATCH_RECORDS records take, and the facts over such room. */
size_t facts_size(size_t count);
void facts_begin(Facts *facts, size_t count, void *room);
/* Read as many lines as there is room for; 0 if one is not certainly a record, or a sum passes 64 bits. */
int facts_read(Facts *facts, const uint8_t *at, const uint8_t *end, int hashed);

/* --- columns.c: the columns of ledger/core/export_layout.py record_columns, and the bytes, as Arrow lays them out -- */

enum { COLUMNS = 35, MAX_COLUMN_RECORDS = 1 << 20, MAX_BUFFERS = 5 };

typedef enum { INTEGERS, TEXTS, METRICS } ColumnKind;

/* One column over some records. Sizes are known after columns_measure; then the buffers, which are the caller's, are
 * filled. `valid` and those of `buffers` that the kind does not have stay NULL:
 *   INTEGERS  int64 values
 *   TEXTS     int32 offsets, bytes
 *   METRICS   int32 offsets, int32 offsets of names, bytes of names, int64 values, int64 scales */
typedef struct {
    ColumnKind kind;
    size_t nulls, bytes, items;   /* of text; of metrics */
    uint8_t *valid;               /* a bit a row, the lowest first; only where nulls > 0 */
    void *buffers[MAX_BUFFERS];
} Column;

/* Parse `count` lines into `records`; 0 if one is not certainly a record. */
int columns_parse(const uint8_t *at, const uint8_t *end, Record *records, Text *lines, size_t count);
/* The kinds and sizes of all columns; 0 if text passes what 32-bit offsets can say. */
int columns_measure(const Record *records, const Text *lines, size_t count, Column columns[COLUMNS]);
size_t column_buffer_size(const Column *column, size_t count, int buffer);
void columns_fill(const Record *records, const Text *lines, size_t count, Column columns[COLUMNS]);

#endif
