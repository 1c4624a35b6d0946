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

/* The state as the instructions keep it. */
typedef struct {
    __m128i abef, cdgh;
} State;

SHA_TARGET static inline State load_state(const uint32_t state[8]) {
    const __m128i dcba = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(const void *)&state[0]), 0xB1);
    const __m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(const void *)&state[4]), 0x1B);
    return (State){_mm_alignr_epi8(dcba, hgfe, 8), _mm_blend_epi16(hgfe, dcba, 0xF0)};
}

SHA_TARGET static inline void store_state(uint32_t state[8], State s) {
    const __m128i feba = _mm_shuffle_epi32(s.abef, 0x1B), dchg = _mm_shuffle_epi32(s.cdgh, 0xB1);
    _mm_storeu_si128((__m128i *)(void *)&state[0], _mm_blend_epi16(feba, dchg, 0xF0));
    _mm_storeu_si128((__m128i *)(void *)&state[4], _mm_alignr_epi8(dchg, feba, 8));
}

SHA_TARGET static inline __m128i load_words(const uint8_t *data) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    return _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)data), swap);
}

/* Four rounds: the instruction does two. */
SHA_TARGET static inline State rounds(State s, __m128i words, __m128i constants) {
    const __m128i sum = _mm_add_epi32(words, constants);
    s.cdgh = _mm_sha256rnds2_epu32(s.cdgh, s.abef, sum);
    s.abef = _mm_sha256rnds2_epu32(s.abef, s.cdgh, _mm_shuffle_epi32(sum, 0x0E));
    return s;
}

/* The four words after those in w[0] to w[15], which begin at w[group % 4]; they take the place of the oldest. */
SHA_TARGET static inline void schedule(__m128i w[4], int group) {
    const __m128i w0 = w[group % 4], w1 = w[(group + 1) % 4], w2 = w[(group + 2) % 4], w3 = w[(group + 3) % 4];
    w[group % 4] = _mm_sha256msg2_epu32(
        _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8(w3, w2, 4)), w3);
}

SHA_TARGET static void compress(uint32_t state[8], const uint8_t *data, size_t blocks) {
    State s = load_state(state);
    for (; blocks; blocks--, data += SHA256_BLOCK) {
        const State before = s;
        __m128i w[4] = {load_words(data), load_words(data + 16), load_words(data + 32), load_words(data + 48)};
#pragma GCC unroll 16
        for (int group = 0; group < 16; group++) {
            if (group >= 4)
                schedule(w, group);
            s = rounds(s, w[group % 4], _mm_load_si128((const __m128i *)(const void *)&K[4 * group]));
        }
        s.abef = _mm_add_epi32(s.abef, before.abef);
        s.cdgh = _mm_add_epi32(s.cdgh, before.cdgh);
    }
    store_state(state, s);
}

/* The same of two messages at once: one alone has the processor wait for each result before the next step. */
SHA_TARGET static void compress_two(uint32_t *const state[2], const uint8_t *a, const uint8_t *b, size_t blocks) {
    State s = load_state(state[0]), t = load_state(state[1]);
    for (; blocks; blocks--, a += SHA256_BLOCK, b += SHA256_BLOCK) {
        const State s_before = s, t_before = t;
        __m128i v[4] = {load_words(a), load_words(a + 16), load_words(a + 32), load_words(a + 48)};
        __m128i w[4] = {load_words(b), load_words(b + 16), load_words(b + 32), load_words(b + 48)};
#pragma GCC unroll 16
        for (int group = 0; group < 16; group++) {
            const __m128i constants = _mm_load_si128((const __m128i *)(const void *)&K[4 * group]);
            if (group >= 4) {
                schedule(v, group);
                schedule(w, group);
            }
            s = rounds(s, v[group % 4], constants);
            t = rounds(t, w[group % 4], constants);
        }
        s.abef = _mm_add_epi32(s.abef, s_before.abef);
        s.cdgh = _mm_add_epi32(s.cdgh, s_before.cdgh);
        t.abef = _mm_add_epi32(t.abef, t_before.abef);
        t.cdgh = _mm_add_epi32(t.cdgh, t_before.cdgh);
    }
    store_state(state[0], s);
    store_state(state[1], t);
}

#else

int sha256_available(void) { return 0; }

static void compress(uint32_t state[8], const uint8_t *data, size_t blocks) {
    (void)state;
    (void)data;
    (void)blocks;
}

static void compress_two(uint32_t *const state[2], const uint8_t *a, const uint8_t *b, size_t blocks) {
    (void)state;
    (void)a;
    (void)b;
    (void)blocks;
}

#endif

/* --- one message --------------------------------------------------------------------------------------- */

static const uint32_t START[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

void sha256_begin(Sha256 *hash) {
    memcpy(hash->state, START, sizeof START);
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

static void store_state_be(uint8_t out[HASH_SIZE], const uint32_t state[8]) {
    for (int i = 0; i < 8; i++)
        store_be32(out + 4 * i, state[i]);
}

/* The last one or two blocks of a message of `size` bytes, of which size % 64 are at `rest`; how many. */
static size_t pad(uint8_t last[2 * SHA256_BLOCK], const uint8_t *rest, uint64_t size) {
    const size_t used = size % SHA256_BLOCK;
    const size_t blocks = used < SHA256_BLOCK - 8 ? 1 : 2;
    const uint64_t bits = size * 8;
    memset(last, 0, 2 * SHA256_BLOCK);
    if (used)
        memcpy(last, rest, used);
    last[used] = 0x80;
    store_be32(last + blocks * SHA256_BLOCK - 8, (uint32_t)(bits >> 32));
    store_be32(last + blocks * SHA256_BLOCK - 4, (uint32_t)bits);
    return blocks;
}

void sha256_end(Sha256 *hash, uint8_t out[HASH_SIZE]) {
    uint8_t last[2 * SHA256_BLOCK];
    compress(hash->state, last, pad(last, hash->rest, hash->size));
    store_state_be(out, hash->state);
}

/* --- two messages at once, and trees ------------------------------------------------------------------- */

void sha256_two(const Message messages[2], uint8_t *const out[2]) {
    uint32_t states[2][8], *const state[2] = {states[0], states[1]};
    uint8_t first[2][SHA256_BLOCK], last[2][2 * SHA256_BLOCK];
    const uint8_t *at[2];
    size_t blocks[2];
    for (int i = 0; i < 2; i++) {
        const Message *m = &messages[i];
        const size_t begun = SHA256_BLOCK - m->head_size; /* of the body, in the block that the head begins */
        if (m->size < begun) {
            for (int k = 0; k < 2; k++) {
                Sha256 hash;
                sha256_begin(&hash);
                sha256_add(&hash, messages[k].head, messages[k].head_size);
                sha256_add(&hash, messages[k].body, messages[k].size);
                sha256_end(&hash, out[k]);
            }
            return;
        }
        memcpy(states[i], START, sizeof START);
        memcpy(first[i], m->head, m->head_size);
        memcpy(first[i] + m->head_size, m->body, begun);
        at[i] = m->body + begun;
        blocks[i] = (m->size - begun) / SHA256_BLOCK;
    }
    compress_two(state, first[0], first[1], 1);
    const size_t both = blocks[0] < blocks[1] ? blocks[0] : blocks[1];
    compress_two(state, at[0], at[1], both);
    for (int i = 0; i < 2; i++) {
        compress(states[i], at[i] + both * SHA256_BLOCK, blocks[i] - both);
        at[i] += blocks[i] * SHA256_BLOCK;
        blocks[i] = pad(last[i], at[i], messages[i].head_size + (uint64_t)messages[i].size);
    }
    compress_two(state, last[0], last[1], 1);
    for (int i = 0; i < 2; i++) {
        compress(states[i], last[i] + SHA256_BLOCK, blocks[i] - 1);
        store_state_be(out[i], states[i]);
    }
}

static const uint8_t LEAF[1] = {0}, NODE[1] = {1};

void merkle_leaf(const uint8_t *data, size_t size, uint8_t out[HASH_SIZE]) {
    Sha256 hash;
    sha256_begin(&hash);
    sha256_add(&hash, LEAF, 1);
    sha256_add(&hash, data, size);
    sha256_end(&hash, out);
}

void merkle_leaf_two(const uint8_t *const data[2], const size_t size[2], uint8_t *const out[2]) {
    const Message messages[2] = {{LEAF, 1, data[0], size[0]}, {LEAF, 1, data[1], size[1]}};
    sha256_two(messages, out);
}

void merkle_node(const uint8_t *left, const uint8_t *right, uint8_t out[HASH_SIZE]) {
    Sha256 hash;
    sha256_begin(&hash);
    sha256_add(&hash, NODE, 1);
    sha256_add(&hash, left, HASH_SIZE);
    sha256_add(&hash, right, HASH_SIZE);
    sha256_end(&hash, out);
}

void merkle_root(uint8_t *hashes, size_t count, uint8_t out[HASH_SIZE]) {
    while (count > 1) {
        const size_t pairs = count / 2;
        size_t i = 0;
        for (; i + 1 < pairs; i += 2) { /* messages of 64 bytes and more are read before a hash is written */
            uint8_t *const at = hashes + 2 * i * HASH_SIZE, *const to = hashes + i * HASH_SIZE;
            uint8_t *const both[2] = {to, to + HASH_SIZE};
            const Message messages[2] = {{NODE, 1, at, 2 * HASH_SIZE}, {NODE, 1, at + 2 * HASH_SIZE, 2 * HASH_SIZE}};
            sha256_two(messages, both);
        }
        for (; i < pairs; i++)
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
