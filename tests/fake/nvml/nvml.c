/* A fake of libnvidia-ml.so.1: the symbols that wattspan uses, on boards simulated by a file.
 *
 * The file next to the library ("<library>.boards") is mapped, so that a test can change the machine at run time:
 * words of 64 bits, laid out as in mod.rs. Energy is the exact integral of each board's power curve at its last
 * counter update, in whole millijoules, as in the real counter. Signatures and numbers are those of nvml.h (API 13).
 * Parts can be left out at compile time: WITHOUT_FIELDS, WITHOUT_SHUTDOWN, WITHOUT_UUID.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, UNKNOWN = 999 };

enum { NOW_NS, BOARDS, REFUSAL, INIT_HANGS, GENERATION, UNLOADED, INITS, SHUTDOWN_HANGS, HEAD = 16 };
enum { SHOWN_AT, NAME, COUNTER, INSTANT, MODULE, MEMORY, MIG, REFUSES, HANGS, UPDATE_NS, PHASE_NS, SENSOR_NS,
       BASE_NS, BURN_NS, SLEEP_NS, ENERGY_ASKED, POWER_ASKED, LIMIT_MW, USAGE, ARCHITECTURE, SENSOR_PERMILLE,
       HELD, STEPS, CURVE, USERS_TOLD = 56, USER_A, USER_A_PERCENT, USER_B, USER_B_PERCENT, LAG_NS, LOAD_PERCENT, BOARD = 64 };
enum { MOST_BOARDS = 16 };

typedef struct {
    unsigned int fieldId, scopeId;
    long long timestamp, latencyUsec;
    int valueType, nvmlReturn;
    union { double d; int si; unsigned int ui; unsigned long ul; unsigned long long ull; long long sll; } value;
} nvmlFieldValue_t;

static volatile uint64_t *words;
/* The driver that this process has initialised; 0: none. A handle is a board of one driver. */
static uint64_t generation;
static int references;
/* The number of boards that it lists: the first ones of the file. */
static uint64_t listed;

static int map(void)
{
    Dl_info info;
    char path[4096];
    if (words)
        return 1;
    if (!dladdr((void *)map, &info) || snprintf(path, sizeof path, "%s.boards", info.dli_fname) >= (int)sizeof path)
        return 0;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return 0;
    void *mapped = mmap(0, 8 * (HEAD + BOARD * MOST_BOARDS), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED)
        return 0;
    words = mapped;
    return 1;
}

static volatile uint64_t *board(uint64_t nth) { return words + HEAD + BOARD * nth; }

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static uint64_t now_ns(void) { return words[NOW_NS] ? words[NOW_NS] : clock_ns(CLOCK_MONOTONIC); }

/* The board's true energy since instant 0 of the clock, in picojoules; the curve repeats. */
static unsigned __int128 energy_pj(volatile uint64_t *b, uint64_t at_ns)
{
    uint64_t period_ns = 0;
    unsigned __int128 round_pj = 0, energy = 0;
    for (uint64_t step = 0; step < b[STEPS]; step++) {
        period_ns += b[CURVE + 2 * step];
        round_pj += (unsigned __int128)b[CURVE + 2 * step] * b[CURVE + 2 * step + 1];
    }
    if (!period_ns)
        return 0;
    energy = round_pj * (at_ns / period_ns);
    at_ns %= period_ns;
    for (uint64_t step = 0; step < b[STEPS] && at_ns; step++) {
        uint64_t passed_ns = at_ns < b[CURVE + 2 * step] ? at_ns : b[CURVE + 2 * step];
        energy += (unsigned __int128)passed_ns * b[CURVE + 2 * step + 1];
        at_ns -= passed_ns;
    }
    return energy;
}

/* The counter's value: the energy since the driver was loaded, at the last update that is published. */
static uint64_t counter_mj(volatile uint64_t *b, uint64_t part)
{
    uint64_t at_ns = now_ns() - b[LAG_NS], base_ns = b[BASE_NS];
    if (at_ns >= b[PHASE_NS])
        at_ns = b[PHASE_NS] + (at_ns - b[PHASE_NS]) / b[UPDATE_NS] * b[UPDATE_NS];
    if (at_ns <= base_ns)
        return 0;
    return (uint64_t)((energy_pj(b, at_ns) - energy_pj(b, base_ns)) * part / 100 / 1000000000ull);
}

/* The sensor's value: the mean of its last period, times a constant factor. */
static uint64_t power_mw(volatile uint64_t *b, uint64_t part)
{
    uint64_t at_ns = now_ns() / b[SENSOR_NS] * b[SENSOR_NS];
    uint64_t before_ns = at_ns > b[SENSOR_NS] ? at_ns - b[SENSOR_NS] : 0;
    if (at_ns == before_ns)
        return 0;
    return (uint64_t)((energy_pj(b, at_ns) - energy_pj(b, before_ns)) / (at_ns - before_ns)) * part / 100
        * b[SENSOR_PERMILLE] / 1000;
}

/* The first step of every call about a board. A handle holds the board and the driver's generation. */
static int enter(void *handle, volatile uint64_t **b)
{
    uint64_t id = (uint64_t)handle;
    if (!words || !references)
        return UNINITIALIZED;
    if (words[UNLOADED])
        return DRIVER_NOT_LOADED;
    if (!id || id >> 8 != words[GENERATION] || generation != words[GENERATION] || (id & 255) > listed)
        return UNINITIALIZED;
    *b = board((id & 255) - 1);
    while ((*b)[HANGS]) {
        (*b)[HELD] = 1;
        usleep(200);
    }
    return (int)(*b)[REFUSES];
}

static void cost(volatile uint64_t *b)
{
    uint64_t until_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) + b[BURN_NS];
    if (b[SLEEP_NS])
        usleep(b[SLEEP_NS] / 1000);
    while (b[BURN_NS] && clock_ns(CLOCK_THREAD_CPUTIME_ID) < until_ns)
        ;
}

int nvmlInit_v2(void)
{
    if (!map())
        return UNKNOWN;
    while (words[INIT_HANGS])
        usleep(200);
    if (words[UNLOADED])
        return DRIVER_NOT_LOADED;
    if (words[REFUSAL])
        return (int)words[REFUSAL];
    __sync_fetch_and_add(&words[INITS], 1);
    /* As in the real library, only the first initialisation has an effect. */
    if (__sync_fetch_and_add(&references, 1) == 0) {
        generation = words[GENERATION];
        listed = words[BOARDS];
    }
    return SUCCESS;
}

#ifndef WITHOUT_SHUTDOWN
int nvmlShutdown(void)
{
    if (references <= 0)
        return UNINITIALIZED;
    while (words[SHUTDOWN_HANGS])
        usleep(200);
    __sync_fetch_and_sub(&references, 1);
    return SUCCESS;
}
#endif

int nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    snprintf(version, length, "580.95.05");
    return words && references ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceGetCount_v2(unsigned int *count)
{
    if (!words || !references)
        return UNINITIALIZED;
    *count = (unsigned int)listed;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle)
{
    for (uint64_t nth = 0; words && nth < listed; nth++)
        if (board(nth)[SHOWN_AT] == index) {
            *handle = (void *)(generation << 8 | (nth + 1));
            return SUCCESS;
        }
    return INVALID_ARGUMENT;
}

static void uuid_of(uint64_t nth, char *into, unsigned int length)
{
    snprintf(into, length, "GPU-%08llx-0000-4000-8000-000000000000", (unsigned long long)board(nth)[NAME]);
}

#ifndef WITHOUT_UUID
int nvmlDeviceGetUUID(void *handle, char *into, unsigned int length)
{
    uuid_of(((uint64_t)handle & 255) - 1, into, length);
    return SUCCESS;
}
#endif

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle)
{
    char own[96];
    for (uint64_t nth = 0; words && nth < listed; nth++) {
        uuid_of(nth, own, sizeof own);
        if (!strcmp(own, uuid)) {
            *handle = (void *)(generation << 8 | (nth + 1));
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

int nvmlDeviceGetName(void *handle, char *into, unsigned int length)
{
    volatile uint64_t *b = 0;
    int refused = enter(handle, &b);
    if (!refused)
        snprintf(into, length, b[MODULE] == 2 ? "NVIDIA GB200" : b[MODULE] ? "NVIDIA GH200 480GB" : "NVIDIA Stand-in");
    return refused;
}

int nvmlDeviceGetArchitecture(void *handle, unsigned int *architecture)
{
    volatile uint64_t *b = 0;
    int refused = enter(handle, &b);
    if (!refused)
        *architecture = (unsigned int)b[ARCHITECTURE];
    return refused;
}

int nvmlDeviceGetMigMode(void *handle, unsigned int *current, unsigned int *pending)
{
    volatile uint64_t *b = 0;
    int refused = enter(handle, &b);
    if (refused)
        return refused;
    *current = *pending = b[MIG] == 1;
    return b[MIG] ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *energy)
{
    volatile uint64_t *b = 0;
    int refused = enter(handle, &b);
    if (refused)
        return refused;
    if (!b[COUNTER])
        return NOT_SUPPORTED;
    b[ENERGY_ASKED]++;
    cost(b);
    *energy = counter_mj(b, 100);
    return SUCCESS;
}

int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned int *limit)
{
    volatile uint64_t *b = 0;
    int refused = enter(handle, &b);
    if (refused)
        return refused;
    *limit = (unsigned int)b[LIMIT_MW];
    return b[LIMIT_MW] ? SUCCESS : NOT_SUPPORTED;
}

typedef struct { unsigned int gpu, memory; } nvmlUtilization_t;

int nvmlDeviceGetUtilizationRates(void *handle, nvmlUtilization_t *utilization)
{
    volatile uint64_t *b = 0;
    int refused = enter(handle, &b);
    if (refused)
        return refused;
    if (!b[LOAD_PERCENT])
        return NOT_SUPPORTED;
    utilization->gpu = (unsigned int)b[LOAD_PERCENT] - 1;
    utilization->memory = 0;
    return SUCCESS;
}

/* A mean over the last second, as on everything from Ampere on. */
int nvmlDeviceGetPowerUsage(void *handle, unsigned int *power)
{
    volatile uint64_t *b = 0;
    int refused = enter(handle, &b);
    if (refused)
        return refused;
    if (!b[USAGE])
        return NOT_SUPPORTED;
    uint64_t at_ns = now_ns(), window_ns = b[ARCHITECTURE] < 7 ? 20000000ull : 1000000000ull;
    *power = (unsigned int)((energy_pj(b, at_ns) - energy_pj(b, at_ns - window_ns)) / window_ns);
    b[POWER_ASKED]++;
    return SUCCESS;
}

typedef struct {
    unsigned int pid;
    unsigned long long timeStamp;
    unsigned int smUtil, memUtil, encUtil, decUtil;
} nvmlProcessUtilizationSample_t;

/* At most two processes, one sample each, stamped now. As in the real library the status is "not found" where no
 * process computes, and a call with too small a buffer returns the size needed. */
int nvmlDeviceGetProcessUtilization(void *handle, nvmlProcessUtilizationSample_t *samples, unsigned int *count,
                                    unsigned long long lastSeen)
{
    volatile uint64_t *b = 0;
    int refused = enter(handle, &b);
    unsigned int there = 0;
    if (refused)
        return refused;
    if (!b[USERS_TOLD])
        return NOT_SUPPORTED;
    for (int user = 0; user < 2; user++)
        there += b[USER_A_PERCENT + 2 * user] > 0;
    if (!there)
        return NOT_FOUND;
    if (!samples || *count < there) {
        *count = there;
        return INSUFFICIENT_SIZE;
    }
    *count = 0;
    for (int user = 0; user < 2; user++)
        if (b[USER_A_PERCENT + 2 * user]) {
            nvmlProcessUtilizationSample_t sample = { (unsigned int)b[USER_A + 2 * user], lastSeen + 1,
                                                      (unsigned int)b[USER_A_PERCENT + 2 * user], 0, 0, 0 };
            samples[(*count)++] = sample;
        }
    return SUCCESS;
}

#ifndef WITHOUT_FIELDS
/* A scope's energy in percent of the board's: memory 25, module 150. */
static uint64_t part_of(unsigned int scope) { return scope == 1 ? 150 : scope == 2 ? 25 : 100; }

static int field(volatile uint64_t *b, nvmlFieldValue_t *value)
{
    int there = value->scopeId == 0 || (value->scopeId == 1 && b[MODULE]) || (value->scopeId == 2 && b[MEMORY]);
    uint64_t part = part_of(value->scopeId);
    if (!there)
        return NOT_SUPPORTED;
    switch (value->fieldId) {
    case 83:
    case 191:
        if (b[COUNTER] != 1 || (value->fieldId == 83 && value->scopeId))
            return NOT_SUPPORTED;
        b[ENERGY_ASKED]++;
        cost(b);
        value->valueType = 3;
        value->value.ull = counter_mj(b, part);
        return SUCCESS;
    case 186:
        if (!b[INSTANT])
            return NOT_SUPPORTED;
        b[POWER_ASKED]++;
        value->valueType = 1;
        value->value.ui = (unsigned int)power_mw(b, part);
        return SUCCESS;
    case 188:
        value->valueType = 1;
        value->value.ui = (unsigned int)b[LIMIT_MW];
        return b[LIMIT_MW] ? SUCCESS : NOT_SUPPORTED;
    default:
        return INVALID_ARGUMENT;
    }
}

int nvmlDeviceGetFieldValues(void *handle, int count, nvmlFieldValue_t *values)
{
    volatile uint64_t *b = 0;
    int refused = enter(handle, &b);
    if (refused)
        return refused;
    for (int at = 0; at < count; at++) {
        values[at].timestamp = (long long)(clock_ns(CLOCK_REALTIME) / 1000);
        values[at].nvmlReturn = field(b, &values[at]);
    }
    return SUCCESS;
}
#endif
