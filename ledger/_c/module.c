/* The module ledger._native: its functions take and give what those of ledger/core and ledger/audit do, which
 * stay the reference. A function that returns None leaves the case to them. ledger/_native.pyi has the types.
 *
 * The interpreter lock is given up only over copies and over bytes, and nothing that may run Python code (making a
 * list or a tuple may, by collecting garbage) comes between looking at a list and reading it: so none changes while
 * it is read. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifdef Py_GIL_DISABLED
#error "lists are read without locks of their own: the Python implementation serves free-threaded Python"
#endif

#include <limits.h>
#include <string.h>

#include "native.h"

#define CHUNK_BYTES 256
#define SALT_SIZE 32
#define PAIR_HEAD 16
#define FEW_CHUNKS 64
#define FEW_LEAVES 64 /* below that, giving up the interpreter lock takes longer than it lasts */

/* sha256_available(), asked once: under a hypervisor the question takes longer than a hash. */
static int has_hashes;

/* --- lists of bytes ------------------------------------------------------------------------------------ */

/* The items of a list or tuple; NULL, without an exception, if it is neither. */
static PyObject **items_of(PyObject *sequence, Py_ssize_t *count) {
    if (!PyList_CheckExact(sequence) && !PyTuple_CheckExact(sequence))
        return NULL;
    *count = PySequence_Fast_GET_SIZE(sequence);
    return PySequence_Fast_ITEMS(sequence);
}

static int all_hashes(PyObject *const *items, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; i++)
        if (!PyBytes_CheckExact(items[i]) || PyBytes_GET_SIZE(items[i]) != HASH_SIZE)
            return 0;
    return 1;
}

static PyObject *new_hash(void) { return PyBytes_FromStringAndSize(NULL, HASH_SIZE); }

static uint8_t *raw(PyObject *bytes) { return (uint8_t *)PyBytes_AS_STRING(bytes); }

static PyObject *py_leaf_hash(PyObject *self, PyObject *data) {
    (void)self;
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *out = new_hash();
    if (out)
        merkle_leaf(view.buf, (size_t)view.len, raw(out));
    PyBuffer_Release(&view);
    return out;
}

static PyObject *py_leaf_hashes(PyObject *self, PyObject *leaves) {
    (void)self;
    Py_ssize_t count, still;
    if (!items_of(leaves, &count))
        Py_RETURN_NONE;
    PyObject *out = PyList_New(count); /* may collect garbage, which runs code: look at the items after it */
    PyObject **items = items_of(leaves, &still);
    if (!out)
        return NULL;
    int sound = items && still == count;
    for (Py_ssize_t i = 0; sound && i < count; i++)
        sound = PyBytes_CheckExact(items[i]);
    if (!sound) {
        Py_DECREF(out);
        Py_RETURN_NONE;
    }
    for (Py_ssize_t i = 0; out && i < count; i++) {
        PyObject *hash = new_hash();
        if (!hash) {
            Py_CLEAR(out);
            break;
        }
        PyList_SET_ITEM(out, i, hash);
        if (i % 2) {
            const uint8_t *const data[2] = {raw(items[i - 1]), raw(items[i])};
            const size_t sizes[2] = {(size_t)PyBytes_GET_SIZE(items[i - 1]), (size_t)PyBytes_GET_SIZE(items[i])};
            uint8_t *const both[2] = {raw(PyList_GET_ITEM(out, i - 1)), raw(hash)};
            merkle_leaf_two(data, sizes, both);
        } else if (i + 1 == count) {
            merkle_leaf(raw(items[i]), (size_t)PyBytes_GET_SIZE(items[i]), raw(hash));
        }
    }
    return out;
}

static PyObject *py_node_hash(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (count != 2 || !all_hashes(args, 2))
        Py_RETURN_NONE;
    PyObject *out = new_hash();
    if (out)
        merkle_node(raw(args[0]), raw(args[1]), raw(out));
    return out;
}

static PyObject *py_fold_pairs(PyObject *self, PyObject *hashes) {
    (void)self;
    Py_ssize_t count, still;
    if (!items_of(hashes, &count))
        Py_RETURN_NONE;
    PyObject *out = PyList_New(count / 2); /* see py_leaf_hashes */
    PyObject **items = items_of(hashes, &still);
    if (!out)
        return NULL;
    if (!items || still != count || !all_hashes(items, count)) {
        Py_DECREF(out);
        Py_RETURN_NONE;
    }
    for (Py_ssize_t i = 0; out && i < count / 2; i++) {
        PyObject *hash = new_hash();
        if (!hash) {
            Py_CLEAR(out);
            break;
        }
        merkle_node(raw(items[2 * i]), raw(items[2 * i + 1]), raw(hash));
        PyList_SET_ITEM(out, i, hash);
    }
    return out;
}

static PyObject *py_root(PyObject *self, PyObject *hashes) {
    (void)self;
    Py_ssize_t count;
    PyObject **items = items_of(hashes, &count);
    if (!items || count == 0 || !all_hashes(items, count))
        Py_RETURN_NONE;
    uint8_t *level = PyMem_Malloc((size_t)count * HASH_SIZE);
    if (!level)
        return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count; i++)
        memcpy(level + i * HASH_SIZE, raw(items[i]), HASH_SIZE);
    uint8_t out[HASH_SIZE];
    if (count > FEW_LEAVES) {
        Py_BEGIN_ALLOW_THREADS
        merkle_root(level, (size_t)count, out);
        Py_END_ALLOW_THREADS
    } else {
        merkle_root(level, (size_t)count, out);
    }
    PyMem_Free(level);
    return PyBytes_FromStringAndSize((const char *)out, HASH_SIZE);
}

/* --- commitments --------------------------------------------------------------------------------------- */

static PyObject *py_hmac(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (count != 2 || !PyBytes_CheckExact(args[0]) || !PyBytes_CheckExact(args[1]))
        Py_RETURN_NONE;
    PyObject *out = new_hash();
    if (out)
        hmac_sha256(raw(args[0]), (size_t)PyBytes_GET_SIZE(args[0]), raw(args[1]),
                    (size_t)PyBytes_GET_SIZE(args[1]), raw(out));
    return out;
}

static void store_le32(uint8_t *out, uint32_t value) {
    out[0] = (uint8_t)value;
    out[1] = (uint8_t)(value >> 8);
    out[2] = (uint8_t)(value >> 16);
    out[3] = (uint8_t)(value >> 24);
}

/* Plain integers of one digit, which most ids are, and their values. */
#if PY_VERSION_HEX >= 0x030C0000
#define IS_SHORT(item)                                            \
    (PyUnstable_Long_IsCompact((const PyLongObject *)(item)) &&   \
     PyUnstable_Long_CompactValue((const PyLongObject *)(item)) >= 0)
#define SHORT_VALUE(item) ((uint32_t)PyUnstable_Long_CompactValue((const PyLongObject *)(item)))
#else
#define IS_SHORT(item) (Py_SIZE(item) == 1)
#define SHORT_VALUE(item) ((uint32_t)((const PyLongObject *)(item))->ob_digit[0])
#endif

/* The value of a plain integer within 32 bits, or -1. */
static int64_t token_of(PyObject *item) {
    if (!PyLong_CheckExact(item))
        return -1;
    int overflow;
    const long long value = PyLong_AsLongLongAndOverflow(item, &overflow);
    return overflow || value > UINT32_MAX ? -1 : value;
}

/* Plain integers within 32 bits; 0 if there is anything else. No Python code runs in between. Serving threads wait
 * for this. */
static int pack_items(PyObject *const *items, Py_ssize_t count, uint8_t *out) {
    for (Py_ssize_t i = 0; i < count; i++) {
        /* The type first: other objects may have no size to be read. */
        if (PyLong_CheckExact(items[i]) && IS_SHORT(items[i])) {
            store_le32(out + 4 * i, SHORT_VALUE(items[i]));
            continue;
        }
        const int64_t value = token_of(items[i]);
        if (value < 0)
            return 0;
        store_le32(out + 4 * i, (uint32_t)value);
    }
    return 1;
}

/* The same of an array's memory, of 4 or 8 bytes an item. */
static int pack_memory(const Py_buffer *view, Py_ssize_t count, uint8_t *out) {
    const uint8_t *at = view->buf;
    const int is_signed = view->format[0] >= 'a';
    for (Py_ssize_t i = 0; i < count; i++, at += view->itemsize) {
        uint64_t value;
        if (view->itemsize == 8) {
            memcpy(&value, at, 8); /* a negative number becomes too large a one */
        } else {
            uint32_t narrow;
            memcpy(&narrow, at, 4);
            value = narrow;
            if (is_signed && narrow > INT32_MAX)
                return 0;
        }
        if (value > UINT32_MAX)
            return 0;
        store_le32(out + 4 * i, (uint32_t)value);
    }
    return 1;
}

/* Whether the items of a view are integers of 4 or 8 bytes, one after the other, in this machine's order. */
static int packable(const Py_buffer *view) {
    return view->ndim == 1 && (view->itemsize == 4 || view->itemsize == 8) && view->format &&
           view->format[0] && strchr("iIlLqQ", view->format[0]) && !view->format[1];
}

/* How many ids there are; -1 if it is another kind of container than a list, a tuple or an array of integers. The
 * view is the caller's to release if it has an object. */
static Py_ssize_t count_tokens(PyObject *tokens, PyObject ***items, Py_buffer *view) {
    Py_ssize_t count = -1;
    view->obj = NULL;
    if ((*items = items_of(tokens, &count)))
        return count;
    if (PyList_CheckExact(tokens)) { /* an empty one, without memory of its own */
        static PyObject *none[1];
        *items = none;
        return 0;
    }
    if (!PyObject_CheckBuffer(tokens))
        return -1;
    if (PyObject_GetBuffer(tokens, view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) < 0) {
        PyErr_Clear();
        view->obj = NULL;
        return -1;
    }
    return packable(view) ? view->len / view->itemsize : -1;
}

/* Token ids as uint32, little-endian; None if they are not plain integers within 32 bits, or in another kind of
 * container than a list, a tuple or an array. */
static PyObject *py_pack_tokens(PyObject *self, PyObject *tokens) {
    (void)self;
    PyObject **items, *out = NULL;
    Py_buffer view;
    int sound = 0;
    const Py_ssize_t count = count_tokens(tokens, &items, &view);
    if (count >= 0 && count <= PY_SSIZE_T_MAX / 4 && (out = PyBytes_FromStringAndSize(NULL, 4 * count)))
        sound = items ? pack_items(items, count, raw(out)) : pack_memory(&view, count, raw(out));
    if (view.obj)
        PyBuffer_Release(&view);
    if (sound)
        return out;
    Py_XDECREF(out);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static void store_le64(uint8_t *out, uint64_t value) {
    store_le32(out, (uint32_t)value);
    store_le32(out + 4, (uint32_t)(value >> 32));
}

/* pack_pair(input, output): the ids of both in one piece, after their two counts; -1 for None. None if one is not
 * to be packed, or if there is neither. */
static PyObject *py_pack_pair(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (count != 2 || (args[0] == Py_None && args[1] == Py_None))
        Py_RETURN_NONE;
    Py_ssize_t counts[2] = {-1, -1};
    PyObject **items[2] = {NULL, NULL}, *out = NULL;
    Py_buffer views[2] = {{0}, {0}};
    int sound = 1;
    size_t total = 0;
    for (int i = 0; i < 2 && sound; i++) {
        if (args[i] == Py_None)
            continue;
        counts[i] = count_tokens(args[i], &items[i], &views[i]);
        sound = counts[i] >= 0 && counts[i] < PY_SSIZE_T_MAX / 16;
        total += sound ? (size_t)counts[i] : 0;
    }
    if (sound)
        sound = (out = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(PAIR_HEAD + 4 * total))) != NULL;
    uint8_t *at = sound ? raw(out) + PAIR_HEAD : NULL;
    for (int i = 0; i < 2 && sound; i++) {
        store_le64(raw(out) + 8 * i, (uint64_t)(int64_t)counts[i]);
        if (counts[i] < 0)
            continue;
        Py_ssize_t still = 0;
        if (items[i] && counts[i]) { /* asking the other one for its memory may have run code */
            items[i] = items_of(args[i], &still);
            if (!(sound = items[i] && still == counts[i]))
                break;
        }
        sound = items[i] ? pack_items(items[i], counts[i], at) : pack_memory(&views[i], counts[i], at);
        at += 4 * counts[i];
    }
    for (int i = 0; i < 2; i++)
        if (views[i].obj)
            PyBuffer_Release(&views[i]);
    if (sound)
        return out;
    Py_XDECREF(out);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

/* The chunks' leaves under the salt, in `leaves`. See ledger/core/commitments.py. */
static void hash_chunks(const uint8_t *content, size_t size, const uint8_t salt[SALT_SIZE], uint8_t *leaves) {
    static const char tag[] = "tallystick chunk v1";
    uint8_t seed[sizeof tag - 1 + SALT_SIZE];
    Shake256 salts;
    memcpy(seed, tag, sizeof tag - 1);
    memcpy(seed + sizeof tag - 1, salt, SALT_SIZE);
    shake256_begin(&salts, seed, sizeof seed);
    for (size_t at = 0; at < size; at += 2 * CHUNK_BYTES, leaves += 2 * HASH_SIZE) {
        uint8_t heads[2][1 + SALT_SIZE] = {{0}, {0}};
        uint8_t unused[HASH_SIZE];
        const size_t left = size - at;
        const int two = left > CHUNK_BYTES;
        shake256_squeeze(&salts, heads[0] + 1, SALT_SIZE);
        if (two)
            shake256_squeeze(&salts, heads[1] + 1, SALT_SIZE);
        const Message messages[2] = {
            {heads[0], sizeof heads[0], content + at, two ? CHUNK_BYTES : left},
            {heads[1], sizeof heads[1], content + at + (two ? CHUNK_BYTES : 0),
             !two ? 0 : left < 2 * CHUNK_BYTES ? left - CHUNK_BYTES : CHUNK_BYTES},
        };
        uint8_t *const out[2] = {leaves, two ? leaves + HASH_SIZE : unused};
        sha256_two(messages, out);
    }
}

/* The digest that commits to content under the salt. 0 if there is no memory. */
static int commit(uint8_t kind, const uint8_t *content, size_t size, size_t unit, const uint8_t salt[SALT_SIZE],
                  uint8_t out[HASH_SIZE]) {
    static const char tag[] = "tallystick commitment v1";
    const size_t chunks = size / CHUNK_BYTES + (size % CHUNK_BYTES != 0);
    uint8_t root[HASH_SIZE], few[FEW_CHUNKS * HASH_SIZE], *leaves = few;
    Sha256 hash;
    if (chunks > FEW_CHUNKS && !(leaves = PyMem_Malloc(chunks * HASH_SIZE)))
        return 0;
    if (chunks) {
        hash_chunks(content, size, salt, leaves);
        merkle_root(leaves, chunks, root);
    } else { /* the root of the empty tree */
        sha256_begin(&hash);
        sha256_end(&hash, root);
    }
    if (leaves != few)
        PyMem_Free(leaves);
    uint8_t number[8];
    const uint64_t units = (uint64_t)size / (uint64_t)unit;
    for (int i = 0; i < 8; i++)
        number[i] = (uint8_t)(units >> (8 * i));
    sha256_begin(&hash);
    sha256_add(&hash, tag, sizeof tag - 1);
    sha256_add(&hash, &kind, 1);
    sha256_add(&hash, number, sizeof number);
    sha256_add(&hash, root, HASH_SIZE);
    sha256_end(&hash, out);
    return 1;
}

/* commit(kind, unit, content, salt): the digest that commits to the content, which has a count of units. */
static PyObject *py_commit(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (count != 4 || !PyBytes_CheckExact(args[0]) || PyBytes_GET_SIZE(args[0]) != 1 ||
        !PyLong_CheckExact(args[1]) || !PyBytes_CheckExact(args[2]) || !PyBytes_CheckExact(args[3]) ||
        PyBytes_GET_SIZE(args[3]) != SALT_SIZE)
        Py_RETURN_NONE;
    const long unit = PyLong_AsLong(args[1]);
    if (unit <= 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "the unit must be positive");
        return NULL;
    }
    PyObject *out = new_hash();
    if (out && !commit(*raw(args[0]), raw(args[2]), (size_t)PyBytes_GET_SIZE(args[2]), (size_t)unit,
                       raw(args[3]), raw(out))) {
        Py_DECREF(out);
        return PyErr_NoMemory();
    }
    return out;
}

static uint64_t load_le64(const uint8_t *at) {
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--)
        value = value << 8 | at[i];
    return value;
}

/* Lower-case hexadecimal. */
static PyObject *hex_text(const uint8_t digest[HASH_SIZE]) {
    static const char digits[] = "0123456789abcdef";
    char text[2 * HASH_SIZE];
    for (int i = 0; i < HASH_SIZE; i++) {
        text[2 * i] = digits[digest[i] >> 4];
        text[2 * i + 1] = digits[digest[i] & 15];
    }
    return PyUnicode_DecodeASCII(text, sizeof text, NULL);
}

/* The salt of one of a record's purposes; `id` is short (see py_commit_record). */
static void record_salt(PyObject *key, const char *id, size_t size, const char *purpose, uint8_t salt[SALT_SIZE]) {
    static const char tag[] = "tallystick salt v1";
    uint8_t info[128];
    const size_t rest = strlen(purpose);
    memcpy(info, tag, sizeof tag - 1);
    memcpy(info + sizeof tag - 1, id, size);
    memcpy(info + sizeof tag - 1 + size, purpose, rest);
    hmac_sha256(raw(key), (size_t)PyBytes_GET_SIZE(key), info, sizeof tag - 1 + size + rest, salt);
}

/* commit_record(key, id, packed, request): the commitments, in hexadecimal, to both ids that pack_pair packed
 * and to a request id, each under its salt; None for what is not there. */
static PyObject *py_commit_record(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    static const char *const purposes[3] = {"/input\1", "/output\1", "/request\1"};
    Py_ssize_t id_size, request_size = 0;
    const char *id, *request = NULL;
    uint8_t salt[SALT_SIZE], digest[HASH_SIZE];
    int64_t counts[2] = {-1, -1};
    const uint8_t *content = NULL;
    if (count != 4 || !PyBytes_CheckExact(args[0]) || !PyUnicode_CheckExact(args[1]))
        Py_RETURN_NONE;
    if (!(id = PyUnicode_AsUTF8AndSize(args[1], &id_size))) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    if (id_size > 64)
        Py_RETURN_NONE;
    if (args[3] != Py_None) {
        if (!PyUnicode_CheckExact(args[3]))
            Py_RETURN_NONE;
        if (!(request = PyUnicode_AsUTF8AndSize(args[3], &request_size))) { /* half a surrogate pair */
            PyErr_Clear();
            Py_RETURN_NONE;
        }
    }
    if (args[2] != Py_None) {
        if (!PyBytes_CheckExact(args[2]) || PyBytes_GET_SIZE(args[2]) < PAIR_HEAD)
            Py_RETURN_NONE;
        content = raw(args[2]) + PAIR_HEAD;
        uint64_t left = (uint64_t)(PyBytes_GET_SIZE(args[2]) - PAIR_HEAD);
        for (int i = 0; i < 2; i++) {
            counts[i] = (int64_t)load_le64(raw(args[2]) + 8 * i);
            if (counts[i] < -1 || (counts[i] > 0 && (uint64_t)counts[i] > left / 4))
                Py_RETURN_NONE;
            left -= counts[i] > 0 ? 4 * (uint64_t)counts[i] : 0;
        }
        if (left)
            Py_RETURN_NONE;
    }
    PyObject *out = PyTuple_New(3);
    for (int i = 0; out && i < 3; i++) {
        PyObject *text;
        if (i == 2 ? !request : counts[i] < 0) {
            text = Py_NewRef(Py_None);
        } else {
            record_salt(args[0], id, (size_t)id_size, purposes[i], salt);
            if (i == 2) {
                hmac_sha256(salt, SALT_SIZE, (const uint8_t *)request, (size_t)request_size, digest);
                text = hex_text(digest);
            } else {
                const size_t size = 4 * (size_t)counts[i];
                text = commit('t', content, size, 4, salt, digest) ? hex_text(digest) : PyErr_NoMemory();
                content += size;
            }
        }
        if (!text)
            Py_CLEAR(out);
        else
            PyTuple_SET_ITEM(out, i, text);
    }
    return out;
}

static PyObject *py_shake256(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (count != 2 || !PyBytes_CheckExact(args[0]) || PyBytes_GET_SIZE(args[0]) >= SHAKE256_RATE ||
        !PyLong_CheckExact(args[1])) {
        PyErr_SetString(PyExc_TypeError, "shake256 takes fewer than 136 bytes, and how many are wanted");
        return NULL;
    }
    const Py_ssize_t size = PyLong_AsSsize_t(args[1]);
    if (size < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "a size cannot be negative");
        return NULL;
    }
    PyObject *out = PyBytes_FromStringAndSize(NULL, size);
    if (out) {
        Shake256 shake;
        shake256_begin(&shake, raw(args[0]), (size_t)PyBytes_GET_SIZE(args[0]));
        shake256_squeeze(&shake, raw(out), (size_t)size);
    }
    return out;
}

/* record_id(now_ns, count, end): the text of a UUIDv7 of that time with the low 36 bits of the count, which ends in
 * ten characters: that of the variant, which stands before the count's middle digits, and the last nine. */
static PyObject *py_record_id(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    static const char digits[] = "0123456789abcdef";
    if (count != 3 || !PyUnicode_CheckExact(args[2]) || !PyUnicode_IS_ASCII(args[2]) ||
        PyUnicode_GET_LENGTH(args[2]) != 10) {
        PyErr_SetString(PyExc_TypeError, "record_id takes a time, a count and ten ASCII characters");
        return NULL;
    }
    const long long now = PyLong_AsLongLong(args[0]), given = PyLong_AsLongLong(args[1]);
    if ((now == -1 || given == -1) && PyErr_Occurred())
        return NULL;
    const char *end = PyUnicode_DATA(args[2]);
    const uint64_t time = (uint64_t)now / 1000000, number = (uint64_t)given;
    PyObject *out = PyUnicode_New(36, 127);
    if (!out)
        return NULL;
    char *at = PyUnicode_DATA(out);
    for (int shift = 44; shift >= 0; shift -= 4) {
        if (shift == 12)
            *at++ = '-';
        *at++ = digits[time >> shift & 15];
    }
    *at++ = '-';
    *at++ = '7';
    for (int shift = 32; shift >= 0; shift -= 4) {
        if (shift == 20) {
            *at++ = '-';
            *at++ = end[0];
        } else if (shift == 8) {
            *at++ = '-';
        }
        *at++ = digits[number >> shift & 15];
    }
    memcpy(at, end + 1, 9);
    return out;
}

/* --- records ------------------------------------------------------------------------------------------- */

static PyObject *py_is_record(PyObject *self, PyObject *data) {
    (void)self;
    Record record;
    return PyBool_FromLong(PyBytes_CheckExact(data) &&
                           record_parse(raw(data), (size_t)PyBytes_GET_SIZE(data), &record));
}

static PyObject *py_record_lines(PyObject *self, PyObject *data) {
    (void)self;
    if (!PyBytes_CheckExact(data))
        Py_RETURN_NONE;
    const uint8_t *at = raw(data), *end = at + PyBytes_GET_SIZE(data);
    if (at == end || end[-1] != '\n')
        Py_RETURN_NONE;
    const Py_ssize_t count = (Py_ssize_t)count_lines(at, end);
    PyObject *out = PyList_New(count);
    for (Py_ssize_t i = 0; out && i < count; i++) {
        const uint8_t *stop = line_end(at, end);
        Record record;
        if (!record_parse(at, (size_t)(stop - at), &record)) {
            Py_DECREF(out);
            Py_RETURN_NONE;
        }
        PyObject *line = PyBytes_FromStringAndSize((const char *)at, stop - at);
        if (!line) {
            Py_CLEAR(out);
            break;
        }
        PyList_SET_ITEM(out, i, line);
        at = stop + 1;
    }
    return out;
}

/* --- facts of a batch ---------------------------------------------------------------------------------- */

static PyObject *new_text(const uint8_t *at, size_t size) {
    return PyUnicode_FromStringAndSize((const char *)at, (Py_ssize_t)size);
}

static PyObject *ids_of(const Facts *facts) {
    PyObject *out = PyTuple_New((Py_ssize_t)facts->count);
    for (size_t i = 0; out && i < facts->count; i++) {
        PyObject *id = PyBytes_FromStringAndSize((const char *)facts->ids + i * ID_SIZE, ID_SIZE);
        if (!id) {
            Py_CLEAR(out);
            break;
        }
        PyTuple_SET_ITEM(out, (Py_ssize_t)i, id);
    }
    return out;
}

static PyObject *factors_of(const Facts *facts) {
    PyObject *out = PyTuple_New((Py_ssize_t)facts->factors_count);
    for (size_t i = 0; out && i < facts->factors_count; i++) {
        PyObject *digest = new_text(facts->factors[i], HEX_SIZE);
        if (!digest) {
            Py_CLEAR(out);
            break;
        }
        PyTuple_SET_ITEM(out, (Py_ssize_t)i, digest);
    }
    return out;
}

static PyObject *sums_of(const Group *group) {
    PyObject *out = PyList_New(SUMS);
    for (Py_ssize_t i = 0; out && i < SUMS; i++) {
        PyObject *sum = PyLong_FromUnsignedLongLong(group->sums[i]);
        if (!sum) {
            Py_CLEAR(out);
            break;
        }
        PyList_SET_ITEM(out, i, sum);
    }
    return out;
}

static PyObject *rollups_of(const Facts *facts) {
    PyObject *out = PyDict_New();
    for (size_t i = 0; out && i < facts->groups_count; i++) {
        const Group *group = &facts->groups[i];
        PyObject *key = Py_BuildValue(
            "(KNN)", (unsigned long long)group->hour, new_text(group->tenant.at, group->tenant.size),
            new_text(group->deployment.at, group->deployment.size));
        PyObject *sums = key ? sums_of(group) : NULL;
        if (!sums || PyDict_SetItem(out, key, sums) < 0)
            Py_CLEAR(out);
        Py_XDECREF(key);
        Py_XDECREF(sums);
    }
    return out;
}

static PyObject *root_of(Facts *facts) {
    PyObject *out = new_hash();
    if (out)
        merkle_root(facts->hashes, facts->count, raw(out));
    return out;
}

static PyObject *py_batch_facts(PyObject *self, PyObject *data) {
    (void)self;
    if (!PyBytes_CheckExact(data))
        Py_RETURN_NONE;
    const uint8_t *at = raw(data), *end = at + PyBytes_GET_SIZE(data);
    if (at == end || end[-1] != '\n')
        Py_RETURN_NONE;
    const size_t count = count_lines(at, end);
    if (count > MAX_BATCH_RECORDS)
        Py_RETURN_NONE;
    void *room = PyMem_RawMalloc(facts_size(count));
    if (!room)
        return PyErr_NoMemory();
    Facts facts;
    int sound;
    facts_begin(&facts, count, room);
    Py_BEGIN_ALLOW_THREADS
    sound = facts_read(&facts, at, end, has_hashes);
    Py_END_ALLOW_THREADS
    PyObject *out = NULL;
    if (sound) {
        /* "N" takes the references, also when one is NULL and the whole fails. */
        out = Py_BuildValue("(NKKNNN)", ids_of(&facts), (unsigned long long)facts.first_us,
                            (unsigned long long)facts.last_us, factors_of(&facts), rollups_of(&facts),
                            has_hashes ? root_of(&facts) : Py_NewRef(Py_None));
    } else {
        out = Py_NewRef(Py_None);
    }
    PyMem_RawFree(room);
    return out;
}

/* --- columns of records -------------------------------------------------------------------------------- */

/* (nulls, validity or None, buffer, ...) with buffers to fill; NULL with an exception if there is no memory. */
static PyObject *new_column(Column *column, size_t count) {
    static const Py_ssize_t used[] = {[INTEGERS] = 1, [TEXTS] = 2, [METRICS] = 5};
    PyObject *out = PyTuple_New(2 + used[column->kind]);
    PyObject *nulls = out ? PyLong_FromSize_t(column->nulls) : NULL;
    if (!nulls)
        goto failed;
    PyTuple_SET_ITEM(out, 0, nulls);
    PyObject *valid = column->nulls ? PyBytes_FromStringAndSize(NULL, (Py_ssize_t)((count + 7) / 8)) : Py_NewRef(Py_None);
    if (!valid)
        goto failed;
    PyTuple_SET_ITEM(out, 1, valid);
    column->valid = column->nulls ? raw(valid) : NULL;
    for (int i = 0; i < used[column->kind]; i++) {
        PyObject *buffer = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)column_buffer_size(column, count, i));
        if (!buffer)
            goto failed;
        PyTuple_SET_ITEM(out, 2 + i, buffer);
        column->buffers[i] = raw(buffer);
    }
    return out;
failed:
    Py_XDECREF(out);
    return NULL;
}

static PyObject *new_columns(Column columns[COLUMNS], size_t count) {
    PyObject *out = PyList_New(COLUMNS);
    for (Py_ssize_t i = 0; out && i < COLUMNS; i++) {
        PyObject *column = new_column(&columns[i], count);
        if (!column) {
            Py_CLEAR(out);
            break;
        }
        PyList_SET_ITEM(out, i, column);
    }
    return out;
}

/* Nobody else has the new buffers yet, so they are filled without the interpreter lock. */
static PyObject *py_record_columns(PyObject *self, PyObject *data) {
    (void)self;
    if (!PyBytes_CheckExact(data))
        Py_RETURN_NONE;
    const uint8_t *const at = raw(data), *const end = at + PyBytes_GET_SIZE(data);
    if (at == end || end[-1] != '\n')
        Py_RETURN_NONE;
    const size_t count = count_lines(at, end);
    if (count > MAX_COLUMN_RECORDS)
        Py_RETURN_NONE;
    Record *const records = PyMem_RawMalloc(count * (sizeof(Record) + sizeof(Text)));
    if (!records)
        return PyErr_NoMemory();
    Text *const lines = (Text *)(void *)(records + count);
    Column columns[COLUMNS];
    int sound;
    Py_BEGIN_ALLOW_THREADS
    sound = columns_parse(at, end, records, lines, count) && columns_measure(records, lines, count, columns);
    Py_END_ALLOW_THREADS
    PyObject *out = sound ? new_columns(columns, count) : Py_NewRef(Py_None);
    if (out && sound) {
        Py_BEGIN_ALLOW_THREADS
        columns_fill(records, lines, count, columns);
        Py_END_ALLOW_THREADS
    }
    PyMem_RawFree(records);
    return out;
}

/* lines_hash(data): the hashes of newline-ended lines, joined, and the root over them. */
static PyObject *py_lines_hash(PyObject *self, PyObject *data) {
    (void)self;
    if (!PyBytes_CheckExact(data))
        Py_RETURN_NONE;
    const uint8_t *at = raw(data), *const end = at + PyBytes_GET_SIZE(data);
    if (at == end || end[-1] != '\n')
        Py_RETURN_NONE;
    const size_t count = count_lines(at, end);
    PyObject *const hashes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(count * HASH_SIZE));
    uint8_t *const work = PyMem_RawMalloc(count * HASH_SIZE);
    uint8_t root[HASH_SIZE];
    if (!hashes || !work) {
        Py_XDECREF(hashes);
        PyMem_RawFree(work);
        return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS
    const uint8_t *starts[2];
    size_t sizes[2];
    for (size_t i = 0; i < count; i++) {
        const uint8_t *const stop = line_end(at, end);
        uint8_t *const hash = work + i * HASH_SIZE;
        starts[i % 2] = at;
        sizes[i % 2] = (size_t)(stop - at);
        if (i % 2) {
            uint8_t *const both[2] = {hash - HASH_SIZE, hash};
            merkle_leaf_two(starts, sizes, both);
        } else if (i + 1 == count) {
            merkle_leaf(at, sizes[0], hash);
        }
        at = stop + 1;
    }
    memcpy(raw(hashes), work, count * HASH_SIZE);
    merkle_root(work, count, root);
    Py_END_ALLOW_THREADS
    PyMem_RawFree(work);
    return Py_BuildValue("(Ny#)", hashes, (const char *)root, (Py_ssize_t)HASH_SIZE);
}

/* --- the index of record ids --------------------------------------------------------------------------- */

static size_t id_slot(const uint8_t *id, size_t slots) {
    uint64_t word; /* the random end of a UUIDv7; who makes ids collide has 4,096 of them looked through */
    memcpy(&word, id + ID_SIZE - sizeof word, sizeof word);
    return (size_t)((word * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & (slots - 1);
}

/* Which of `count` ids with places from `first` a row (id, place) names; -1 if none, or if it is no such row. */
static Py_ssize_t find_row(PyObject *row, PyObject *const *ids, long long first, const uint16_t *table, size_t slots) {
    if (!PyTuple_CheckExact(row) || PyTuple_GET_SIZE(row) != 2)
        return -1;
    PyObject *const id = PyTuple_GET_ITEM(row, 0), *const place = PyTuple_GET_ITEM(row, 1);
    if (!PyBytes_CheckExact(id) || PyBytes_GET_SIZE(id) != ID_SIZE || !PyLong_CheckExact(place))
        return -1;
    int overflow;
    const long long value = PyLong_AsLongLongAndOverflow(place, &overflow);
    if (overflow || value < first)
        return -1;
    for (size_t slot = id_slot(raw(id), slots); table[slot]; slot = (slot + 1) & (slots - 1)) {
        const Py_ssize_t i = table[slot] - 1;
        if (value - first == i && memcmp(raw(ids[i]), raw(id), ID_SIZE) == 0)
            return i;
    }
    return -1;
}

/* unmatched(ids, first, rows): the pairs (id, place) and the rows that have no counterpart on the other side. */
static PyObject *py_unmatched(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (count != 3 || !PyTuple_CheckExact(args[0]) || !PyLong_CheckExact(args[1]) || !PyList_CheckExact(args[2]))
        Py_RETURN_NONE;
    PyObject *const *const ids = PySequence_Fast_ITEMS(args[0]);
    const Py_ssize_t ids_count = PyTuple_GET_SIZE(args[0]);
    int overflow;
    const long long first = PyLong_AsLongLongAndOverflow(args[1], &overflow);
    if (ids_count > MAX_BATCH_RECORDS || overflow || first < 0 || first > LLONG_MAX - MAX_BATCH_RECORDS)
        Py_RETURN_NONE;
    uint16_t table[2 * MAX_BATCH_RECORDS];
    uint8_t matched[MAX_BATCH_RECORDS];
    size_t slots = 2;
    while (slots < 2 * (size_t)ids_count)
        slots *= 2;
    memset(table, 0, slots * sizeof *table);
    memset(matched, 0, (size_t)ids_count);
    for (Py_ssize_t i = 0; i < ids_count; i++) {
        if (!PyBytes_CheckExact(ids[i]) || PyBytes_GET_SIZE(ids[i]) != ID_SIZE)
            Py_RETURN_NONE;
        size_t slot = id_slot(raw(ids[i]), slots);
        while (table[slot])
            slot = (slot + 1) & (slots - 1);
        table[slot] = (uint16_t)(i + 1);
    }
    PyObject *pairs = PyList_New(0), *rows = PyList_New(0), *pair = NULL;
    if (!pairs || !rows)
        goto failed;
    for (Py_ssize_t k = 0; k < PyList_GET_SIZE(args[2]); k++) {
        PyObject *const row = PyList_GET_ITEM(args[2], k);
        const Py_ssize_t i = find_row(row, ids, first, table, slots);
        if (i >= 0)
            matched[i] = 1;
        else if (PyList_Append(rows, row) < 0)
            goto failed;
    }
    for (Py_ssize_t i = 0; i < ids_count; i++) {
        if (matched[i])
            continue;
        if (!(pair = Py_BuildValue("(OL)", ids[i], first + i)) || PyList_Append(pairs, pair) < 0)
            goto failed;
        Py_CLEAR(pair);
    }
    return Py_BuildValue("(NN)", pairs, rows);
failed:
    Py_XDECREF(pairs);
    Py_XDECREF(rows);
    Py_XDECREF(pair);
    return NULL;
}

/* --- the module ---------------------------------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"batch_facts", py_batch_facts, METH_O, NULL},
    {"is_record", py_is_record, METH_O, NULL},
    {"pack_pair", (PyCFunction)(void (*)(void))py_pack_pair, METH_FASTCALL, NULL},
    {"pack_tokens", py_pack_tokens, METH_O, NULL},
    {"record_columns", py_record_columns, METH_O, NULL},
    {"record_id", (PyCFunction)(void (*)(void))py_record_id, METH_FASTCALL, NULL},
    {"record_lines", py_record_lines, METH_O, NULL},
    {"shake256", (PyCFunction)(void (*)(void))py_shake256, METH_FASTCALL, NULL},
    {"unmatched", (PyCFunction)(void (*)(void))py_unmatched, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

/* Only where the processor has the instructions. */
static PyMethodDef hash_methods[] = {
    {"commit", (PyCFunction)(void (*)(void))py_commit, METH_FASTCALL, NULL},
    {"commit_record", (PyCFunction)(void (*)(void))py_commit_record, METH_FASTCALL, NULL},
    {"fold_pairs", py_fold_pairs, METH_O, NULL},
    {"hmac", (PyCFunction)(void (*)(void))py_hmac, METH_FASTCALL, NULL},
    {"leaf_hash", py_leaf_hash, METH_O, NULL},
    {"leaf_hashes", py_leaf_hashes, METH_O, NULL},
    {"lines_hash", py_lines_hash, METH_O, NULL},
    {"node_hash", (PyCFunction)(void (*)(void))py_node_hash, METH_FASTCALL, NULL},
    {"root", py_root, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *module) {
    has_hashes = sha256_available();
    if (PyModule_AddIntConstant(module, "VERSION", 8) < 0 || PyModule_AddIntConstant(module, "HASHES", has_hashes) < 0)
        return -1;
    return has_hashes ? PyModule_AddFunctions(module, hash_methods) : 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)execute}, {0, NULL}};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "ledger._native", NULL, 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
