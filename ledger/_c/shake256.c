/* SHAKE256 (FIPS 202): Keccak-f[1600] with a rate of 136 bytes, for the salts of a commitment's chunks. */
#include "native.h"

#include <string.h>

static const uint64_t ROUND[24] = {
    0x0000000000000001, 0x0000000000008082, 0x800000000000808a, 0x8000000080008000, 0x000000000000808b,
    0x0000000080000001, 0x8000000080008081, 0x8000000000008009, 0x000000000000008a, 0x0000000000000088,
    0x0000000080008009, 0x000000008000000a, 0x000000008000808b, 0x800000000000008b, 0x8000000000008089,
    0x8000000000008003, 0x8000000000008002, 0x8000000000000080, 0x000000000000800a, 0x800000008000000a,
    0x8000000080008081, 0x8000000000008080, 0x0000000080000001, 0x8000000080008008,
};

static inline uint64_t rotate(uint64_t value, unsigned by) { return value << by | value >> (64 - by); }

/* One lane of rho and pi: lane `from`, after theta, rotated, goes to b. */
#define MOVED(from, by) rotate(a[from] ^ d[(from) % 5], by)
/* One row of chi. */
#define ROW(y, b0, b1, b2, b3, b4)                                                                    \
    do {                                                                                              \
        e[(y) + 0] = (b0) ^ (~(b1) & (b2));                                                           \
        e[(y) + 1] = (b1) ^ (~(b2) & (b3));                                                           \
        e[(y) + 2] = (b2) ^ (~(b3) & (b4));                                                           \
        e[(y) + 3] = (b3) ^ (~(b4) & (b0));                                                           \
        e[(y) + 4] = (b4) ^ (~(b0) & (b1));                                                           \
    } while (0)

static inline void keccak_round(const uint64_t a[25], uint64_t e[25], uint64_t constant) {
    uint64_t c[5], d[5], b0, b1, b2, b3, b4;
    for (int x = 0; x < 5; x++)
        c[x] = a[x] ^ a[x + 5] ^ a[x + 10] ^ a[x + 15] ^ a[x + 20];
    for (int x = 0; x < 5; x++)
        d[x] = c[(x + 4) % 5] ^ rotate(c[(x + 1) % 5], 1);
    b0 = a[0] ^ d[0]; b1 = MOVED(6, 44); b2 = MOVED(12, 43); b3 = MOVED(18, 21); b4 = MOVED(24, 14);
    ROW(0, b0, b1, b2, b3, b4);
    e[0] ^= constant;
    b0 = MOVED(3, 28); b1 = MOVED(9, 20); b2 = MOVED(10, 3); b3 = MOVED(16, 45); b4 = MOVED(22, 61);
    ROW(5, b0, b1, b2, b3, b4);
    b0 = MOVED(1, 1); b1 = MOVED(7, 6); b2 = MOVED(13, 25); b3 = MOVED(19, 8); b4 = MOVED(20, 18);
    ROW(10, b0, b1, b2, b3, b4);
    b0 = MOVED(4, 27); b1 = MOVED(5, 36); b2 = MOVED(11, 10); b3 = MOVED(17, 15); b4 = MOVED(23, 56);
    ROW(15, b0, b1, b2, b3, b4);
    b0 = MOVED(2, 62); b1 = MOVED(8, 55); b2 = MOVED(14, 39); b3 = MOVED(15, 41); b4 = MOVED(21, 2);
    ROW(20, b0, b1, b2, b3, b4);
}

static void permute(uint64_t lanes[25]) {
    uint64_t other[25];
    for (int round = 0; round < 24; round += 2) {
        keccak_round(lanes, other, ROUND[round]);
        keccak_round(other, lanes, ROUND[round + 1]);
    }
}

void shake256_begin(Shake256 *shake, const uint8_t *data, size_t size) {
    uint8_t block[SHAKE256_RATE] = {0};
    memcpy(block, data, size);
    block[size] = 0x1f;
    block[SHAKE256_RATE - 1] |= 0x80;
    memset(shake->lanes, 0, sizeof shake->lanes);
    for (int i = 0; i < SHAKE256_RATE / 8; i++)
        for (int k = 0; k < 8; k++)
            shake->lanes[i] |= (uint64_t)block[8 * i + k] << (8 * k);
    shake->used = SHAKE256_RATE;
}

void shake256_squeeze(Shake256 *shake, uint8_t *out, size_t size) {
    while (size) {
        if (shake->used == SHAKE256_RATE) {
            permute(shake->lanes);
            for (int i = 0; i < SHAKE256_RATE / 8; i++)
                for (int k = 0; k < 8; k++)
                    shake->block[8 * i + k] = (uint8_t)(shake->lanes[i] >> (8 * k));
            shake->used = 0;
        }
        size_t part = SHAKE256_RATE - shake->used;
        if (part > size)
            part = size;
        memcpy(out, shake->block + shake->used, part);
        shake->used += part;
        out += part;
        size -= part;
    }
}
