/* A PKCS#11 module that is another one (FAULTY_MODULE), except for what files in the folder FAULTY_RULES say:

     C_Sign            "RV COUNT" in decimal: the next COUNT calls return RV and nothing else
     C_GetTokenInfo    "FLAGS": set in the flags that it tells
     C_GetMechanismInfo "MECHANISM FLAGS": a mechanism without these flags, or with flags 0 not there at all

   Each call of C_Login, C_Sign and C_Decrypt adds one octet to C_Login.calls and so on there; a question for the length
   of the answer is no such call. Like p11-kit it asks the module for locking, which python-pkcs11 does not. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long ulong;
typedef struct { unsigned char version[2]; void *function[68]; } list;
typedef ulong (*any)(ulong, ulong, ulong, ulong, ulong, ulong);

static list ours, *theirs;

static FILE *rule(const char *name, const char *mode) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", getenv("FAULTY_RULES"), name);
    return fopen(path, mode);
}

static ulong faulty(const char *name, int index, ulong a, ulong b, ulong c, ulong d, ulong e) {
    char counted[64];
    ulong rv = 0, count = 0;
    if (!d) return ((any)theirs->function[index])(a, b, c, d, e, 0);
    snprintf(counted, sizeof counted, "%s.calls", name);
    FILE *file = rule(counted, "a");
    if (file) { fputc('.', file); fclose(file); }
    if ((file = rule(name, "r"))) {
        if (fscanf(file, "%lu %lu", &rv, &count) != 2) count = 0;
        fclose(file);
    }
    if (count) {
        if ((file = rule(name, "w"))) { fprintf(file, "%lu %lu", rv, count - 1); fclose(file); }
        if (index != 18) ((any)theirs->function[index])(a, b, c, d, e, 0); /* which ends the operation */
        return rv;
    }
    return ((any)theirs->function[index])(a, b, c, d, e, 0);
}

static ulong sign(ulong a, ulong b, ulong c, ulong d, ulong e) { return faulty("C_Sign", 43, a, b, c, d, e); }
static ulong decrypt(ulong a, ulong b, ulong c, ulong d, ulong e) { return faulty("C_Decrypt", 34, a, b, c, d, e); }
static ulong login(ulong a, ulong b, ulong c, ulong d) { return faulty("C_Login", 18, a, b, c, d, 0); }

static ulong initialize(void *arguments) {
    struct { void *mutexes[4]; ulong flags; void *reserved; } locking = {{0}, 2 /* CKF_OS_LOCKING_OK */, 0};
    (void)arguments;
    return ((any)theirs->function[0])((ulong)&locking, 0, 0, 0, 0, 0);
}

static ulong token_info(ulong slot, unsigned char *info) {
    ulong rv = ((any)theirs->function[6])(slot, (ulong)info, 0, 0, 0, 0), flags = 0;
    FILE *file = rule("C_GetTokenInfo", "r");
    if (file) {
        if (fscanf(file, "%lu", &flags) == 1) *(ulong *)(info + 96) |= flags;
        fclose(file);
    }
    return rv;
}

static ulong mechanism_info(ulong slot, ulong mechanism, ulong *info) {
    ulong rv = ((any)theirs->function[8])(slot, mechanism, (ulong)info, 0, 0, 0), which = 0, without = 0;
    FILE *file = rule("C_GetMechanismInfo", "r");
    if (file) {
        if (fscanf(file, "%lu %lu", &which, &without) == 2 && which == mechanism) {
            if (!without) rv = 0x70; /* CKR_MECHANISM_INVALID */
            info[2] &= ~without;
        }
        fclose(file);
    }
    return rv;
}

ulong C_GetFunctionList(list **found) {
    if (!theirs) {
        void *module = dlopen(getenv("FAULTY_MODULE"), RTLD_NOW | RTLD_LOCAL);
        if (!module || ((ulong(*)(list **))dlsym(module, "C_GetFunctionList"))(&theirs)) return 5;
        memcpy(&ours, theirs, sizeof ours);
        ours.function[0] = (void *)initialize;
        ours.function[3] = (void *)C_GetFunctionList;
        ours.function[6] = (void *)token_info;
        ours.function[8] = (void *)mechanism_info;
        ours.function[18] = (void *)login;
        ours.function[34] = (void *)decrypt;
        ours.function[43] = (void *)sign;
    }
    *found = &ours;
    return 0;
}
