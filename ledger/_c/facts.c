/* What follows from the records of one batch: their ids and hashes, and their sums by hour, tenant and deployment. */
#include "native.h"

#include <stdlib.h>
#include <string.h>

#define US_PER_HOUR UINT64_C(3600000000)

const uint8_t *line_end(const uint8_t *at, const uint8_t *end) {
    return at == end ? NULL : memchr(at, '\n', (size_t)(end - at));
}

size_t count_lines(const uint8_t *at, const uint8_t *end) {
    size_t count = 0;
    for (const uint8_t *stop; (stop = line_end(at, end)); at = stop + 1)
        count++;
    return count;
}

/* A power of two, at most half of which is used. */
static size_t slots_for(size_t count) {
    size_t slots = 2;
    while (slots < 2 * count)
        slots *= 2;
    return slots;
}

size_t facts_size(size_t count) {
    return count * (sizeof(Group) + sizeof(const uint8_t *) + ID_SIZE + HASH_SIZE) +
           slots_for(count) * sizeof(uint16_t);
}

void facts_begin(Facts *facts, size_t count, void *room) {
    memset(facts, 0, sizeof *facts);
    facts->count = count;
    facts->slots = slots_for(count);
    facts->first_us = UINT64_MAX;
    facts->groups = room; /* what needs the widest alignment comes first */
    facts->factors = (const uint8_t **)(void *)(facts->groups + count);
    facts->table = (uint16_t *)(void *)(facts->factors + count);
    facts->ids = (uint8_t *)(facts->table + facts->slots);
    facts->hashes = facts->ids + count * ID_SIZE;
    memset(facts->table, 0, facts->slots * sizeof *facts->table);
}

static int same_text(const Text *a, const Text *b) {
    return a->size == b->size && (a->size == 0 || memcmp(a->at, b->at, a->size) == 0);
}

static uint64_t mix(uint64_t hash, uint64_t value) {
    hash = (hash ^ value) * UINT64_C(0x9e3779b97f4a7c15);
    return hash ^ hash >> 29;
}

/* Nobody gains by making keys collide: a batch has at most 4,096. */
static uint64_t key_hash(uint64_t hour, const Text *tenant, const Text *deployment) {
    uint64_t hash = mix(tenant->size, hour), word;
    memcpy(&word, deployment->at, sizeof word);
    hash = mix(hash, word);
    for (size_t i = 0; i < tenant->size; i++)
        hash = mix(hash, tenant->at[i]);
    return hash;
}

static Group *group_of(Facts *facts, const Record *record) {
    const uint64_t hour = record->started_us / US_PER_HOUR;
    size_t slot = key_hash(hour, &record->tenant, &record->deployment) & (facts->slots - 1);
    for (; facts->table[slot]; slot = (slot + 1) & (facts->slots - 1)) {
        Group *group = &facts->groups[facts->table[slot] - 1];
        if (group->hour == hour && same_text(&group->tenant, &record->tenant) &&
            same_text(&group->deployment, &record->deployment))
            return group;
    }
    Group *group = &facts->groups[facts->groups_count++];
    facts->table[slot] = (uint16_t)facts->groups_count;
    memset(group->sums, 0, sizeof group->sums);
    group->hour = hour;
    group->tenant = record->tenant;
    group->deployment = record->deployment;
    return group;
}

static void add(Facts *facts, uint64_t *sum, uint64_t value) {
    *sum += value;
    facts->overflow |= *sum < value;
}

static void add_known(Facts *facts, uint64_t sums[2], const Amount *amount) {
    if (amount->known) {
        sums[0]++;
        add(facts, &sums[1], amount->value);
    }
}

static void add_factors(Facts *facts, const Text *digest) {
    if (!digest->at)
        return;
    for (size_t i = facts->factors_count; i--;)
        if (memcmp(facts->factors[i], digest->at, HEX_SIZE) == 0)
            return;
    facts->factors[facts->factors_count++] = digest->at;
}

static void add_record(Facts *facts, const Record *r) {
    uint64_t *sums = group_of(facts, r)->sums;
    sums[RECORDS]++;
    add(facts, &sums[INPUT_TOKENS], r->input_tokens);
    add(facts, &sums[OUTPUT_TOKENS], r->output_tokens);
    add_known(facts, &sums[CACHED_RECORDS], &r->cached_input_tokens);
    add_known(facts, &sums[REASONING_RECORDS], &r->reasoning_tokens);
    if (r->method != NO_ENERGY) {
        sums[MEASURED_RECORDS + (r->method - MEASURED)]++;
        add(facts, &sums[ENERGY], r->energy_uj);
        add(facts, &sums[ENERGY_LOW], r->energy_low_uj);
        add(facts, &sums[ENERGY_HIGH], r->energy_high_uj);
    }
    add_known(facts, &sums[CARBON_RECORDS], &r->carbon_ng);
    add_known(facts, &sums[MARKET_RECORDS], &r->carbon_market_ng);
    add_known(facts, &sums[EMBODIED_RECORDS], &r->embodied_ng);
    add_known(facts, &sums[WATER_RECORDS], &r->water_nl);
    add_factors(facts, &r->factors);
    if (r->started_us < facts->first_us)
        facts->first_us = r->started_us;
    if (r->ended_us > facts->last_us)
        facts->last_us = r->ended_us;
}

static int compare_hex(const void *a, const void *b) {
    return memcmp(*(const uint8_t *const *)a, *(const uint8_t *const *)b, HEX_SIZE);
}

int facts_read(Facts *facts, const uint8_t *at, const uint8_t *end, int hashed) {
    const uint8_t *lines[2];
    size_t sizes[2];
    for (size_t i = 0; i < facts->count; i++) {
        const uint8_t *stop = line_end(at, end);
        Record record;
        if (!stop || !record_parse(at, (size_t)(stop - at), &record))
            return 0;
        memcpy(facts->ids + i * ID_SIZE, record.id, ID_SIZE);
        lines[i % 2] = at;
        sizes[i % 2] = (size_t)(stop - at);
        uint8_t *const hash = facts->hashes + i * HASH_SIZE;
        if (hashed && i % 2) {
            uint8_t *const both[2] = {hash - HASH_SIZE, hash};
            merkle_leaf_two(lines, sizes, both);
        } else if (hashed && i + 1 == facts->count) {
            merkle_leaf(at, sizes[0], hash);
        }
        add_record(facts, &record);
        at = stop + 1;
    }
    qsort((void *)facts->factors, facts->factors_count, sizeof *facts->factors, compare_hex);
    return !facts->overflow;
}
