/* The fingerprints of Debian's weak RSA keys (CVE-2008-0166), made again: a line per process id, in the form of
   openssl-vulnkey(1), the last 80 bits of SHA-1 of what `openssl rsa -modulus` prints. certs/debian_list.py builds and
   runs it.

   usage: debian_keys BITS le32|le64|be32 absent|empty|read [FIRST LAST]

   tests/helpers/debian_keys.py does the same in Python, to be read; how the generator works stands there. This is for
   speed: two keys are made side by side, because two modular powers at once (RSA-2048's, with AVX-512 IFMA) cost little
   more than one. */

#include <openssl/bn.h>
#include <openssl/sha.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { POOL = 1023, DIGEST = 20, HALF = 10, PRIMES = 2047, MAX_LIMBS = 64 };

/* The random number generator. */

static int word_size, big_endian; /* of the machine that is emulated */

typedef struct {
    unsigned char pool[POOL + 1], digest[DIGEST]; /* one byte behind the ring is written, and never read */
    int filled, position, polled, stirred;
    long requests, blocks;
    int pid;
} Generator;

static int put(unsigned char *place, uint64_t value, int size)
{
    for (int i = 0; i < size; i++)
        place[i] = value >> 8 * (big_endian ? size - 1 - i : i);
    return size;
}

/* `at` may be `end` itself, after a draw that ended there. */
static int mix(Generator *g, int at, const unsigned char *bytes, int count, int end)
{
    for (int i = 0; i < count; i++) {
        g->pool[at++] ^= bytes[i];
        if (at >= end)
            at = 0;
    }
    return at;
}

static void add(Generator *g, int count)
{
    unsigned char text[128], local[DIGEST];
    int at = g->position;
    long blocks = g->blocks;
    memcpy(local, g->digest, DIGEST);
    g->position += count;
    if (g->position >= POOL) {
        g->position %= POOL;
        g->filled = POOL;
    } else if (g->position > g->filled)
        g->filled = g->position;
    g->blocks += (count + DIGEST - 1) / DIGEST;
    for (; count > 0; count -= DIGEST) {
        int part = count < DIGEST ? count : DIGEST, length = DIGEST;
        memcpy(text, local, DIGEST);
        for (int i = 0; i < part; i++)
            text[length++] = g->pool[(at + i) % POOL];
        length += put(text + length, g->requests, word_size);
        length += put(text + length, blocks++, word_size);
        SHA1(text, length, local);
        at = mix(g, at, local, part, POOL);
    }
    for (int i = 0; i < DIGEST; i++)
        g->digest[i] ^= local[i];
}

static void poll(Generator *g)
{
    if (g->polled)
        return;
    g->polled = 1;
    add(g, 32);
    for (int i = 0; i < 3; i++)
        add(g, word_size);
}

static void draw(Generator *g, unsigned char *out, int count)
{
    unsigned char text[128], counters[64], local[DIGEST];
    poll(g);
    if (!g->stirred)
        for (int left = POOL; left > 0; left -= DIGEST)
            add(g, DIGEST);
    g->stirred = 1;
    int at = g->position, first = 1, size = put(counters, g->requests, word_size);
    size += put(counters + size, g->blocks, word_size);
    memcpy(local, g->digest, DIGEST);
    g->position += (count + HALF - 1) / HALF * HALF;
    if (g->position > g->filled)
        g->position %= g->filled;
    g->requests++;
    for (; count > 0; count -= HALF) {
        int length = first && g->pid ? put(text, g->pid, 4) : 0;
        first = 0;
        memcpy(text + length, local, DIGEST);
        memcpy(text + length + DIGEST, counters, size);
        length += DIGEST + size;
        for (int i = 0; i < HALF; i++)
            text[length++] = g->pool[(at + i) % g->filled];
        SHA1(text, length, local);
        at = mix(g, at, local, HALF, g->filled);
        int part = count < HALF ? count : HALF;
        memcpy(out, local + HALF, part);
        out += part;
    }
    memcpy(text, counters, size);
    memcpy(text + size, local, DIGEST);
    memcpy(text + size + DIGEST, g->digest, DIGEST);
    SHA1(text, size + 2 * DIGEST, g->digest);
}

/* The search for a prime. All numbers have `bits` bits, a multiple of 32. */

static int bits;
static uint32_t primes[PRIMES], powers[2 * MAX_LIMBS][PRIMES];

static void make_tables(void)
{
    int found = 0;
    for (uint32_t n = 3; found < PRIMES; n += 2) {
        uint32_t d = 3;
        while (d * d <= n && n % d)
            d += 2;
        if (d * d > n)
            primes[found++] = n;
    }
    for (int p = 0; p < PRIMES; p++) {
        uint64_t power = 1;
        for (int i = 0; i < bits / 32; i++, power = (power << 32) % primes[p])
            powers[i][p] = power;
    }
}

static void random_number(Generator *g, unsigned char *number)
{
    add(g, word_size); /* the time */
    draw(g, number, bits / 8);
}

/* The next number to be tried: neither it nor its predecessor has a small factor, but for two. */
static void next_candidate(Generator *g, BIGNUM *candidate)
{
    unsigned char number[8 * MAX_LIMBS];
    uint64_t sums[PRIMES] = {0};
    uint32_t remainders[PRIMES], delta = 0;
    random_number(g, number);
    number[0] |= 0xC0;
    number[bits / 8 - 1] |= 1;
    for (int i = 0; i < bits / 32; i++) {
        const unsigned char *place = number + bits / 8 - 4 * (i + 1);
        uint64_t limb = (uint32_t)place[0] << 24 | place[1] << 16 | place[2] << 8 | place[3];
        for (int p = 0; p < PRIMES; p++)
            sums[p] += limb * powers[i][p];
    }
    for (int p = 0; p < PRIMES; p++)
        remainders[p] = sums[p] % primes[p];
    for (int p = 0; p < PRIMES; p++)
        if ((remainders[p] + delta) % primes[p] <= 1) {
            delta += 2;
            p = -1;
        }
    BN_bin2bn(number, bits / 8, candidate);
    BN_add_word(candidate, delta);
}

/* Bases for Miller-Rabin: whatever they are, a prime passes and (but for odds that can be forgotten) nothing else. */
static void draw_bases(Generator *g, const BIGNUM *candidate, int count)
{
    unsigned char number[8 * MAX_LIMBS], limit[8 * MAX_LIMBS];
    BN_bn2bin(candidate, limit);
    limit[bits / 8 - 1] -= 1;
    while (count--)
        do
            random_number(g, number);
        while (memcmp(number, limit, bits / 8) >= 0);
}

/* A key on its way. */

typedef struct {
    Generator g;
    BIGNUM *candidate, *base, *exponent, *power, *p;
    int has_p, pid, busy;
} Key;

static int next_pid, last_pid, random_file; /* 0 absent, 1 empty, 2 read */
static char (*lines)[21];

static void begin(Key *k)
{
    k->busy = next_pid <= last_pid;
    if (!k->busy)
        return;
    memset(&k->g, 0, sizeof k->g);
    k->g.pid = k->pid = next_pid++;
    k->has_p = 0;
    if (random_file)
        add(&k->g, word_size == 8 ? 144 : 88); /* sizeof(struct stat) of ~/.rnd */
    if (random_file == 2)
        add(&k->g, 1024);
    else
        poll(&k->g);
    next_candidate(&k->g, k->candidate);
}

static void finish(Key *k, int first)
{
    BIGNUM *n = BN_new();
    BN_CTX *ctx = BN_CTX_new();
    unsigned char digest[DIGEST];
    char text[32 * MAX_LIMBS], *line = lines[k->pid - first];
    BN_mul(n, k->p, k->candidate, ctx);
    char *hex = BN_bn2hex(n);
    SHA1((unsigned char *)text, snprintf(text, sizeof text, "Modulus=%s\n", hex), digest);
    for (int i = HALF; i < DIGEST; i++)
        line += sprintf(line, "%02x", digest[i]);
    OPENSSL_free(hex);
    BN_free(n);
    BN_CTX_free(ctx);
}

static void go_on(Key *k, int first)
{
    if (!k->busy)
        return;
    int is_prime = BN_is_one(k->power);
    draw_bases(&k->g, k->candidate, is_prime ? (bits >= 1300 ? 2 : bits >= 850 ? 3 : bits >= 650 ? 4 : 5) : 1);
    if (is_prime && BN_mod_word(k->candidate, 65537) != 1 && !(k->has_p && !BN_cmp(k->p, k->candidate))) {
        if (k->has_p) {
            finish(k, first);
            begin(k);
            return;
        }
        BN_copy(k->p, k->candidate);
        k->has_p = 1;
    }
    next_candidate(&k->g, k->candidate);
}

int main(int argc, char **argv)
{
    if (argc != 4 && argc != 6)
        return fputs("usage: debian_keys BITS le32|le64|be32 absent|empty|read [FIRST LAST]\n", stderr), 2;
    bits = atoi(argv[1]) / 2;
    word_size = strstr(argv[2], "64") ? 8 : 4;
    big_endian = argv[2][0] == 'b';
    random_file = !strcmp(argv[3], "read") ? 2 : !strcmp(argv[3], "empty");
    int first = next_pid = argc == 6 ? atoi(argv[4]) : 0;
    last_pid = argc == 6 ? atoi(argv[5]) : 32767;
    if (bits % 32 || bits < 576 || bits > 64 * MAX_LIMBS || first < 0 || last_pid < first)
        return fputs("debian_keys: no such size or range\n", stderr), 2;
    lines = calloc(last_pid - first + 1, sizeof *lines);
    make_tables();
    Key keys[2];
    BN_CTX *ctx = BN_CTX_new();
    for (int i = 0; i < 2; i++) {
        keys[i].candidate = BN_new(), keys[i].base = BN_new(), keys[i].exponent = BN_new();
        keys[i].power = BN_new(), keys[i].p = BN_new();
        BN_set_word(keys[i].candidate, 15);
        begin(&keys[i]);
    }
    while (keys[0].busy || keys[1].busy) {
        for (int i = 0; i < 2; i++) {
            BN_copy(keys[i].base, keys[i].candidate);
            BN_sub_word(keys[i].base, 2); /* Fermat's test with -2 */
            BN_copy(keys[i].exponent, keys[i].candidate);
            BN_sub_word(keys[i].exponent, 1);
        }
        if (!BN_mod_exp_mont_consttime_x2(keys[0].power, keys[0].base, keys[0].exponent, keys[0].candidate, NULL,
                                          keys[1].power, keys[1].base, keys[1].exponent, keys[1].candidate, NULL, ctx))
            return fputs("debian_keys: no power\n", stderr), 1;
        for (int i = 0; i < 2; i++)
            go_on(&keys[i], first);
    }
    for (int pid = first; pid <= last_pid; pid++)
        puts(lines[pid - first]);
    return 0;
}
