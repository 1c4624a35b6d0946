/* The columns of ledger/core/export_layout.py record_columns over some records, laid out as Apache Arrow does
 * ("Arrow Columnar Format", version 1.5: validity bitmaps, 32-bit offsets), in that function's order, and the
 * records' bytes last. What each column holds is stated once, in PLAN. */
#include "native.h"

#include <stddef.h>
#include <string.h>

#define MAX_OFFSET INT32_MAX

typedef enum { NUMBER, KNOWN, ENERGY_NUMBER, TEXT, QUALITY, LINE } Source;

typedef struct {
    Source source;
    size_t offset;                /* in Record */
} Plan;

#define AT(source, field) {source, offsetof(Record, field)}
static const Plan PLAN[COLUMNS] = {
    AT(TEXT, id_text),
    AT(TEXT, tenant),
    AT(TEXT, deployment),
    AT(TEXT, factors),
    AT(NUMBER, started_us),
    AT(KNOWN, first_token_us),
    AT(NUMBER, ended_us),
    AT(TEXT, finish_reason),
    AT(NUMBER, input_tokens),
    AT(NUMBER, output_tokens),
    AT(KNOWN, cached_input_tokens),
    AT(KNOWN, reasoning_tokens),
    AT(KNOWN, drafted_tokens),
    AT(KNOWN, accepted_tokens),
    AT(ENERGY_NUMBER, energy_uj),
    AT(KNOWN, stated_low_uj),
    AT(KNOWN, stated_high_uj),
    AT(TEXT, energy_method),
    AT(TEXT, energy_source),
    AT(KNOWN, carbon_ng),
    AT(KNOWN, carbon_low_ng),
    AT(KNOWN, carbon_high_ng),
    AT(KNOWN, carbon_market_ng),
    AT(KNOWN, embodied_ng),
    AT(KNOWN, water_nl),
    AT(KNOWN, cost_nano),
    AT(TEXT, currency),
    AT(QUALITY, quality),
    AT(TEXT, request),
    AT(TEXT, input_digest),
    AT(TEXT, input_of),
    AT(TEXT, output_digest),
    AT(TEXT, output_of),
    AT(TEXT, parent),
    {LINE, 0},
};
#undef AT

static const void *field_of(const Plan *plan, const Record *record) {
    return (const uint8_t *)record + plan->offset;
}

static const Text *text_of(const Plan *plan, const Record *record, const Text *line) {
    return plan->source == LINE ? line : field_of(plan, record);
}

static int is_known(const Plan *plan, const Record *record, const Text *line) {
    switch (plan->source) {
    case NUMBER:
        return 1;
    case KNOWN:
        return ((const Amount *)field_of(plan, record))->known;
    case ENERGY_NUMBER:
        return record->method != NO_ENERGY;
    default:
        return text_of(plan, record, line)->at != NULL;
    }
}

int columns_parse(const uint8_t *at, const uint8_t *end, Record *records, Text *lines, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const uint8_t *stop = line_end(at, end);
        if (!stop || !record_parse(at, (size_t)(stop - at), &records[i]))
            return 0;
        lines[i].at = at;
        lines[i].size = (size_t)(stop - at);
        at = stop + 1;
    }
    return 1;
}

int columns_measure(const Record *records, const Text *lines, size_t count, Column columns[COLUMNS]) {
    memset(columns, 0, COLUMNS * sizeof *columns);
    for (int c = 0; c < COLUMNS; c++) {
        const Plan *const plan = &PLAN[c];
        Column *const column = &columns[c];
        column->kind = plan->source == QUALITY ? METRICS : plan->source >= TEXT ? TEXTS : INTEGERS;
        for (size_t i = 0; i < count; i++) {
            if (!is_known(plan, &records[i], &lines[i])) {
                column->nulls++;
            } else if (column->kind == TEXTS) {
                column->bytes += text_of(plan, &records[i], &lines[i])->size;
            } else if (column->kind == METRICS) {
                column->items += records[i].metrics;
                column->bytes += records[i].quality.size; /* more than the names take; cut when filled */
            }
        }
        if (column->bytes > MAX_OFFSET || column->items > MAX_OFFSET)
            return 0;
        if (column->kind == METRICS) { /* exactly now: few records have any */
            column->bytes = 0;
            for (size_t i = 0; i < count; i++) {
                const uint8_t *at = records[i].quality.at;
                Metric metric;
                for (size_t m = 0; m < records[i].metrics; m++) {
                    next_metric(&at, &metric);
                    column->bytes += metric.name.size;
                }
            }
        }
    }
    return 1;
}

size_t column_buffer_size(const Column *column, size_t count, int buffer) {
    const size_t offsets = (count + 1) * sizeof(int32_t);
    switch (column->kind) {
    case INTEGERS:
        return buffer == 0 ? count * sizeof(int64_t) : 0;
    case TEXTS:
        return buffer == 0 ? offsets : buffer == 1 ? column->bytes : 0;
    case METRICS:
        switch (buffer) {
        case 0:
            return offsets;
        case 1:
            return (column->items + 1) * sizeof(int32_t);
        case 2:
            return column->bytes;
        case 3:
        case 4:
            return column->items * sizeof(int64_t);
        default:
            return 0;
        }
    }
    return 0;
}

static void fill_validity(const Plan *plan, const Record *records, const Text *lines, size_t count, uint8_t *valid) {
    memset(valid, 0, (count + 7) / 8);
    for (size_t i = 0; i < count; i++)
        if (is_known(plan, &records[i], &lines[i]))
            valid[i / 8] |= (uint8_t)(1u << i % 8);
}

static void fill_integers(const Plan *plan, const Record *records, size_t count, int64_t *out) {
    for (size_t i = 0; i < count; i++)
        out[i] = plan->source == KNOWN ? (int64_t)((const Amount *)field_of(plan, &records[i]))->value
                                       : (int64_t)*(const uint64_t *)field_of(plan, &records[i]);
}

static void fill_texts(
    const Plan *plan, const Record *records, const Text *lines, size_t count, int32_t *offsets, uint8_t *out) {
    size_t end = 0;
    for (size_t i = 0; i < count; i++) {
        const Text *const text = text_of(plan, &records[i], &lines[i]);
        offsets[i] = (int32_t)end;
        if (text->at)
            memcpy(out + end, text->at, text->size);
        end += text->at ? text->size : 0;
    }
    offsets[count] = (int32_t)end;
}

static void fill_metrics(const Record *records, size_t count, Column *column) {
    int32_t *const lists = column->buffers[0], *const names = column->buffers[1];
    uint8_t *const bytes = column->buffers[2];
    int64_t *const values = column->buffers[3], *const scales = column->buffers[4];
    size_t item = 0, end = 0;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *at = records[i].quality.at;
        lists[i] = (int32_t)item;
        for (size_t m = 0; m < records[i].metrics; m++, item++) {
            Metric metric;
            next_metric(&at, &metric);
            names[item] = (int32_t)end;
            memcpy(bytes + end, metric.name.at, metric.name.size);
            end += metric.name.size;
            values[item] = metric.value;
            scales[item] = metric.scale;
        }
    }
    lists[count] = (int32_t)item;
    names[item] = (int32_t)end;
}

void columns_fill(const Record *records, const Text *lines, size_t count, Column columns[COLUMNS]) {
    for (int c = 0; c < COLUMNS; c++) {
        Column *const column = &columns[c];
        if (column->valid)
            fill_validity(&PLAN[c], records, lines, count, column->valid);
        switch (column->kind) {
        case INTEGERS:
            fill_integers(&PLAN[c], records, count, column->buffers[0]);
            break;
        case TEXTS:
            fill_texts(&PLAN[c], records, lines, count, column->buffers[0], column->buffers[1]);
            break;
        case METRICS:
            fill_metrics(records, count, column);
            break;
        }
    }
}
