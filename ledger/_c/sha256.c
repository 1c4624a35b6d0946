/* SHA-256 (FIPS 180-4) by the x86 SHA extensions, and what RFC 6962 and RFC 2104 make of it.
 *
 * There is no portable form: OpenSSL, through hashlib, is faster than plain C would be. */
#include "native.h"

#include <string.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <cpuid.h>
#include <immintrin.h>

#define SHA_TARGET __attribute__((target("sha,sse4.1")))

int sha256_available(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 9)) || !(c & (1u << 19))) /* SSSE3, SSE4.1 */
        return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    return (b >> 29) & 1; /* SHA */
}

static const uint32_t K[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/* Four rounds: the instruction does two, on the state kept as ABEF and CDGH. */
#define ROUNDS(words, group)                                                                          \
    do {                                                                                              \
        __m128i sum = _mm_add_epi32((words), _mm_load_si128((const __m128i *)(const void *)&K[4 * (group)])); \
        cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);                                                \
        abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0E));                       \
    } while (0)

/* The message words sixteen rounds later, four at a time: w0 becomes the group after w3. */
#define SCHEDULE(w0, w1, w2, w3)                                                                      \
    w0 = _mm_sha256msg2_epu32(                                                                        \
        _mm_add_epi32(_mm_sha256msg1_epu32((w0), (w1)), _mm_alignr_epi8((w3), (w2), 4)), (w3))

SHA_TARGET static void compress(uint32_t state[8], const uint8_t *data, size_t blocks) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    __m128i dcba = _mm_loadu_si128((const __m128i *)(const void *)&state[0]);
    __m128i hgfe = _mm_loadu_si128((const __m128i *)(const void *)&state[4]);
    dcba = _mm_shuffle_epi32(dcba, 0xB1);
    hgfe = _mm_shuffle_epi32(hgfe, 0x1B);
    __m128i abef = _mm_alignr_epi8(dcba, hgfe, 8);
    __m128i cdgh = _mm_blend_epi16(hgfe, dcba, 0xF0);
    for (; blocks; blocks--, data += SHA256_BLOCK) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i w0 = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(data + 0)), swap);
        __m128i w1 = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(data + 16)), swap);
        __m128i w2 = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(data + 32)), swap);
        __m128i w3 = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(data + 48)), swap);
        ROUNDS(w0, 0);
        ROUNDS(w1, 1);
        ROUNDS(w2, 2);
        ROUNDS(w3, 3);
        SCHEDULE(w0, w1, w2, w3); ROUNDS(w0, 4);
        SCHEDULE(w1, w2, w3, w0); ROUNDS(w1, 5);
        SCHEDULE(w2, w3, w0, w1); ROUNDS(w2, 6);
        SCHEDULE(w3, w0, w1, w2); ROUNDS(w3, 7);
        SCHEDULE(w0, w1, w2, w3); ROUNDS(w0, 8);
        SCHEDULE(w1, w2, w3, w0); ROUNDS(w1, 9);
        SCHEDULE(w2, w3, w0, w1); ROUNDS(w2, 10);
        SCHEDULE(w3, w0, w1, w2); ROUNDS(w3, 11);
        SCHEDULE(w0, w1, w2, w3); ROUNDS(w0, 12);
        SCHEDULE(w1, w2, w3, w0); ROUNDS(w1, 13);
        SCHEDULE(w2, w3, w0, w1); ROUNDS(w2, 14);
        SCHEDULE(w3, w0, w1, w2); ROUNDS(w3, 15);
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    const __m128i feba = _mm_shuffle_epi32(abef, 0x1B);
    const __m128i dchg = _mm_shuffle_epi32(cdgh, 0xB1);
    _mm_storeu_si128((__m128i *)(void *)&state[0], _mm_blend_epi16(feba, dchg, 0xF0));
    _mm_storeu_si128((__m128i *)(void *)&state[4], _mm_alignr_epi8(dchg, feba, 8));
}

#else

int sha256_available(void) { return 0; }

static void compress(uint32_t state[8], const uint8_t *data, size_t blocks) {
    (void)state;
    (void)data;
    (void)blocks;
}

#endif

void sha256_begin(Sha256 *hash) {
    static const uint32_t start[8] = {
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    };
    memcpy(hash->state, start, sizeof start);
    hash->size = 0;
}

void sha256_add(Sha256 *hash, const void *data, size_t size) {
    const uint8_t *at = data;
    const size_t used = hash->size % SHA256_BLOCK;
    if (!size)
        return;
    hash->size += size;
    if (used) {
        size_t missing = SHA256_BLOCK - used;
        if (size < missing) {
            memcpy(hash->rest + used, at, size);
            return;
        }
        memcpy(hash->rest + used, at, missing);
        compress(hash->state, hash->rest, 1);
        at += missing;
        size -= missing;
    }
    if (size >= SHA256_BLOCK) {
        compress(hash->state, at, size / SHA256_BLOCK);
        at += size - size % SHA256_BLOCK;
        size %= SHA256_BLOCK;
    }
    if (size)
        memcpy(hash->rest, at, size);
}

static void store_be32(uint8_t *out, uint32_t value) {
    out[0] = (uint8_t)(value >> 24);
    out[1] = (uint8_t)(value >> 16);
    out[2] = (uint8_t)(value >> 8);
    out[3] = (uint8_t)value;
}

void sha256_end(Sha256 *hash, uint8_t out[HASH_SIZE]) {
    uint8_t last[2 * SHA256_BLOCK] = {0};
    const size_t used = hash->size % SHA256_BLOCK;
    const size_t blocks = used < SHA256_BLOCK - 8 ? 1 : 2;
    const uint64_t bits = hash->size * 8;
    memcpy(last, hash->rest, used);
    last[used] = 0x80;
    store_be32(last + blocks * SHA256_BLOCK - 8, (uint32_t)(bits >> 32));
    store_be32(last + blocks * SHA256_BLOCK - 4, (uint32_t)bits);
    compress(hash->state, last, blocks);
    for (int i = 0; i < 8; i++)
        store_be32(out + 4 * i, hash->state[i]);
}

void merkle_leaf(const uint8_t *data, size_t size, uint8_t out[HASH_SIZE]) {
    Sha256 hash;
    sha256_begin(&hash);
    sha256_add(&hash, "\x00", 1);
    sha256_add(&hash, data, size);
    sha256_end(&hash, out);
}

void merkle_node(const uint8_t *left, const uint8_t *right, uint8_t out[HASH_SIZE]) {
    Sha256 hash;
    sha256_begin(&hash);
    sha256_add(&hash, "\x01", 1);
    sha256_add(&hash, left, HASH_SIZE);
    sha256_add(&hash, right, HASH_SIZE);
    sha256_end(&hash, out);
}

void merkle_root(uint8_t *hashes, size_t count, uint8_t out[HASH_SIZE]) {
    while (count > 1) {
        const size_t pairs = count / 2;
        for (size_t i = 0; i < pairs; i++)
            merkle_node(hashes + 2 * i * HASH_SIZE, hashes + (2 * i + 1) * HASH_SIZE, hashes + i * HASH_SIZE);
        if (count % 2) /* a last one without neighbour rises unhashed */
            memmove(hashes + pairs * HASH_SIZE, hashes + (count - 1) * HASH_SIZE, HASH_SIZE);
        count -= pairs;
    }
    memcpy(out, hashes, HASH_SIZE);
}

void hmac_sha256(const uint8_t *key, size_t key_size, const uint8_t *data, size_t size, uint8_t out[HASH_SIZE]) {
    uint8_t block[SHA256_BLOCK] = {0};
    Sha256 hash;
    if (key_size > SHA256_BLOCK) {
        sha256_begin(&hash);
        sha256_add(&hash, key, key_size);
        sha256_end(&hash, block);
    } else if (key_size) {
        memcpy(block, key, key_size);
    }
    for (int i = 0; i < SHA256_BLOCK; i++)
        block[i] ^= 0x36;
    sha256_begin(&hash);
    sha256_add(&hash, block, SHA256_BLOCK);
    sha256_add(&hash, data, size);
    sha256_end(&hash, out);
    for (int i = 0; i < SHA256_BLOCK; i++)
        block[i] ^= 0x36 ^ 0x5c;
    sha256_begin(&hash);
    sha256_add(&hash, block, SHA256_BLOCK);
    sha256_add(&hash, out, HASH_SIZE);
    sha256_end(&hash, out);
}
