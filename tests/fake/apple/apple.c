/* A fake of CoreFoundation, IOKit and libIOReport: the symbols that wattspan calls, on a Mac simulated by two files
 * next to the library.
 *
 * "<library>.words" is mapped, so that a test can change the machine at run time: words of 64 bits, laid out as in
 * mod.rs. "<library>.channels" lists the channels of the group "Energy Model", one per line: name, tab, unit label.
 * Every object has a reference count and a type tag; the words count live objects, and uses of objects that were freed,
 * had another type, or were changed by code that did not create them. Signatures are those of Apple's public headers;
 * IOReport has none, so its signatures are those that the programs that call it agree on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { NOW_TICKS, NUMERATOR, DENOMINATOR, GROUP_ABSENT, REFUSES_PART, REFUSES_ALL, NO_SAMPLES, LIVE, MISUSED, ENTRIES,
       CONTROLLER, CONTROLLER_REFUSES, CONTROLLER_CALLS, SAMPLES, SAMPLED, HEAD = 64 };
enum { VALUE, STAMP, FLAGS, ID, POWER_MW, BATCH_NS, UNIT_NJ, CHANNEL = 16 };
enum { HIDDEN = 1, WITHOUT_ELEMENT = 2, NOT_SIMPLE = 4, SHORT_ELEMENT = 8, FROZEN = 16 };
enum { MOST_CHANNELS = 512, KEYS_AT = HEAD + CHANNEL * MOST_CHANNELS, KEY = 8, MOST_KEYS = 32 };
enum { KEY_NAME, KEY_TYPE, KEY_SIZE, KEY_BYTES, KEY_RESULT, KEY_STATUS };
enum { WORDS = KEYS_AT + KEY * MOST_KEYS };

typedef const void *Ref;
enum kind { STRING = 7, ARRAY, DICTIONARY, DATA, SUBSCRIPTION };
#define ALIVE 0xa11f0b1ec7000000ull
#define DEAD 0xdeadull

typedef struct object {
    uint64_t mark;
    enum kind kind;
    long references;
    int permanent, mutable;
    char *text;
    struct object **items;          /* of an array; of a dictionary: key, value, key, value */
    long count;
    int channel;                    /* of a dictionary that is a channel; else -1 */
    int64_t value;
    uint8_t bytes[64];
    long length;
} Object;

static volatile uint64_t *words;
static struct { char *name, *label; Object *name_text, *label_text; } channels[MOST_CHANNELS];
static int channel_count;
/* The last freed objects: kept, so that a use after free is detected. */
enum { GRAVES = 8192 };
static Object *graves[GRAVES];
static unsigned long buried;

static void map_once(void)
{
    Dl_info info;
    char path[4096], line[512];
    if (!dladdr((void *)map_once, &info))
        abort();
    snprintf(path, sizeof path, "%s.words", info.dli_fname);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    void *mapped = fd < 0 ? MAP_FAILED : mmap(0, 8 * WORDS, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED)
        abort();
    close(fd);
    words = mapped;
    snprintf(path, sizeof path, "%s.channels", info.dli_fname);
    FILE *list = fopen(path, "r");
    while (list && channel_count < MOST_CHANNELS && fgets(line, sizeof line, list)) {
        char *tab = strchr(line, '\t');
        if (line[0] == '#' || !tab)
            continue;
        *tab = 0;
        tab[1 + strcspn(tab + 1, "\n")] = 0;
        channels[channel_count].name = strdup(line);
        channels[channel_count++].label = strdup(tab + 1);
    }
    if (list)
        fclose(list);
}

/* Sources open on threads of their own, so the file is mapped once, thread-safely. */
static void map(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, map_once);
}

static uint64_t count(int word, int64_t by) { return __atomic_add_fetch(&words[word], by, __ATOMIC_SEQ_CST); }

static void misused(void) { count(MISUSED, 1); }

static Object *make(enum kind kind)
{
    map();
    Object *made = calloc(1, sizeof *made);
    made->mark = ALIVE;
    made->kind = kind;
    made->references = 1;
    made->channel = -1;
    count(LIVE, 1);
    return made;
}

/* The object if it is live and of this kind; 0 matches any kind. */
static Object *as(Ref ref, enum kind kind)
{
    Object *object = (Object *)ref;
    map();
    if (!object || object->mark != ALIVE || (kind && object->kind != kind)) {
        misused();
        return 0;
    }
    return object;
}

static Object *retain(Object *object)
{
    object->references++;
    return object;
}

void CFRelease(Ref ref)
{
    Object *object = as(ref, 0);
    if (!object || object->permanent) {
        if (object)
            misused();
        return;
    }
    if (--object->references)
        return;
    for (long at = 0; at < object->count; at++)
        if (!object->items[at]->permanent)
            CFRelease(object->items[at]);
    object->mark = DEAD;
    count(LIVE, -1);
    unsigned long grave = __atomic_fetch_add(&buried, 1, __ATOMIC_SEQ_CST) % GRAVES;
    Object *before = __atomic_exchange_n(&graves[grave], object, __ATOMIC_SEQ_CST);
    if (before) {
        free(before->text);
        free(before->items);
        free(before);
    }
}

unsigned long CFGetTypeID(Ref ref)
{
    Object *object = as(ref, 0);
    return object ? object->kind : 0;
}
unsigned long CFStringGetTypeID(void) { return STRING; }
unsigned long CFArrayGetTypeID(void) { return ARRAY; }
unsigned long CFDictionaryGetTypeID(void) { return DICTIONARY; }
unsigned long CFDataGetTypeID(void) { return DATA; }

static Object *text(const char *of)
{
    Object *made = make(STRING);
    made->text = strdup(of);
    return made;
}

Ref CFStringCreateWithBytes(Ref allocator, const uint8_t *bytes, long length, uint32_t encoding, uint8_t external)
{
    (void)allocator, (void)external;
    if (encoding != 0x08000100)
        return 0;
    Object *made = make(STRING);
    made->text = strndup((const char *)bytes, length);
    return made;
}

uint8_t CFStringGetCString(Ref ref, char *buffer, long size, uint32_t encoding)
{
    Object *object = as(ref, STRING);
    if (!object || encoding != 0x08000100 || (long)strlen(object->text) >= size)
        return 0;
    strcpy(buffer, object->text);
    return 1;
}

static void append(Object *container, Object *item)
{
    container->items = realloc(container->items, (container->count + 1) * sizeof *container->items);
    container->items[container->count++] = item;
}

Ref CFDictionaryGetValue(Ref ref, Ref key)
{
    Object *object = as(ref, DICTIONARY), *wanted = as(key, STRING);
    if (!object || !wanted)
        return 0;
    for (long at = 0; at + 1 < object->count; at += 2)
        if (!strcmp(object->items[at]->text, wanted->text))
            return object->items[at + 1];
    return 0;
}

static Ref copy(Ref ref, enum kind kind)
{
    Object *object = as(ref, kind);
    if (!object)
        return 0;
    Object *made = make(kind);
    made->mutable = 1;
    made->channel = object->channel;
    for (long at = 0; at < object->count; at++)
        append(made, object->items[at]->permanent ? object->items[at] : retain(object->items[at]));
    return made;
}

Ref CFDictionaryCreateMutableCopy(Ref allocator, long capacity, Ref ref)
{
    (void)allocator, (void)capacity;
    return copy(ref, DICTIONARY);
}

Ref CFArrayCreateMutableCopy(Ref allocator, long capacity, Ref ref)
{
    (void)allocator, (void)capacity;
    return copy(ref, ARRAY);
}

void CFDictionarySetValue(Ref ref, Ref key, Ref value)
{
    Object *object = as(ref, DICTIONARY), *name = as(key, STRING), *item = as(value, 0);
    if (!object || !name || !item)
        return;
    if (!object->mutable)
        misused();
    for (long at = 0; at + 1 < object->count; at += 2)
        if (!strcmp(object->items[at]->text, name->text)) {
            Object *before = object->items[at + 1];
            object->items[at + 1] = retain(item);
            CFRelease(before);
            return;
        }
    append(object, retain(name));
    append(object, retain(item));
}

long CFArrayGetCount(Ref ref)
{
    Object *object = as(ref, ARRAY);
    return object ? object->count : 0;
}

Ref CFArrayGetValueAtIndex(Ref ref, long at)
{
    Object *object = as(ref, ARRAY);
    if (!object || at < 0 || at >= object->count) {
        misused();
        return 0;
    }
    return object->items[at];
}

void CFArrayRemoveValueAtIndex(Ref ref, long at)
{
    Object *object = as(ref, ARRAY);
    if (!object || !object->mutable || at < 0 || at >= object->count) {
        misused();
        return;
    }
    Object *gone = object->items[at];
    memmove(object->items + at, object->items + at + 1, (object->count - at - 1) * sizeof *object->items);
    object->count--;
    CFRelease(gone);
}

long CFDataGetLength(Ref ref)
{
    Object *object = as(ref, DATA);
    return object ? object->length : 0;
}

const uint8_t *CFDataGetBytePtr(Ref ref)
{
    Object *object = as(ref, DATA);
    return object ? object->bytes : 0;
}

/* -- time ------------------------------------------------------------------------------------------------------------ */

int mach_timebase_info(uint32_t *parts)
{
    map();
    parts[0] = words[NUMERATOR];
    parts[1] = words[DENOMINATOR];
    return 0;
}

static uint64_t now_ticks(void)
{
    struct timespec time;
    if (words[NOW_TICKS])
        return words[NOW_TICKS];
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (unsigned __int128)(time.tv_sec * 1000000000ull + time.tv_nsec) * words[DENOMINATOR] / words[NUMERATOR];
}

/* -- IOReport -------------------------------------------------------------------------------------------------------- */

static volatile uint64_t *knobs(int channel) { return words + HEAD + CHANNEL * channel; }

static Object *permanent(Object **kept, const char *of)
{
    static pthread_mutex_t making = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&making);
    if (!*kept) {
        *kept = text(of);
        (*kept)->permanent = 1;
        count(LIVE, -1);
    }
    pthread_mutex_unlock(&making);
    return *kept;
}

/* A channel's value and stamp: from its words, or computed from its power and its batches. */
static void show(int channel, int64_t *value, uint64_t *stamp)
{
    volatile uint64_t *k = knobs(channel);
    *value = (int64_t)k[VALUE];
    *stamp = k[STAMP] ? k[STAMP] : now_ticks();
    if (k[POWER_MW] || k[BATCH_NS]) {
        uint64_t now = now_ticks();
        uint64_t at_ns = (unsigned __int128)now * words[NUMERATOR] / words[DENOMINATOR];
        if (k[BATCH_NS])
            at_ns -= at_ns % k[BATCH_NS];
        *stamp = (unsigned __int128)at_ns * words[DENOMINATOR] / words[NUMERATOR];
        *value = (int64_t)((unsigned __int128)k[POWER_MW] * at_ns / 1000000 * 1000 / (k[UNIT_NJ] ? k[UNIT_NJ] : 1));
    }
    if (k[FLAGS] & FROZEN) {
        *value = (int64_t)k[VALUE];
        *stamp = k[STAMP];
    }
}

static Object *entry(int channel, int sampled)
{
    Object *made = make(DICTIONARY);
    made->channel = channel;
    if (!sampled)
        return made;
    uint64_t stamp;
    show(channel, &made->value, &stamp);
    if (knobs(channel)[FLAGS] & WITHOUT_ELEMENT)
        return made;
    static Object *key;
    Object *data = make(DATA);
    uint64_t element[8] = { 0x4242, knobs(channel)[ID] ? knobs(channel)[ID] : 1000u + channel, 0x10001, stamp,
                            (uint64_t)made->value, 0, 0, 0 };
    memcpy(data->bytes, element, sizeof element);
    data->length = knobs(channel)[FLAGS] & SHORT_ELEMENT ? 24 : 64;
    append(made, permanent(&key, "RawElements"));
    append(made, data);
    return made;
}

static Object *dictionary_of(Object *list)
{
    static Object *key;
    Object *made = make(DICTIONARY);
    append(made, permanent(&key, "IOReportChannels"));
    append(made, list);
    return made;
}

Ref IOReportCopyChannelsInGroup(Ref group, Ref subgroup, uint64_t a, uint64_t b, uint64_t c)
{
    Object *name = as(group, STRING);
    if (!name || subgroup || a || b || c || words[GROUP_ABSENT] || strcmp(name->text, "Energy Model"))
        return 0;
    Object *list = make(ARRAY);
    for (int channel = 0; channel < channel_count; channel++)
        append(list, entry(channel, 0));
    return dictionary_of(list);
}

static Ref list_of(Ref dictionary)
{
    static Object *key;
    return CFDictionaryGetValue(dictionary, permanent(&key, "IOReportChannels"));
}

Ref IOReportCreateSubscription(Ref zero, Ref wanted, Ref *granted, uint64_t id, Ref none)
{
    Object *channels_wanted = as(wanted, DICTIONARY);
    if (!channels_wanted || zero || id || none || words[REFUSES_ALL])
        return 0;
    if (!channels_wanted->mutable)
        misused();
    if (words[REFUSES_PART] && CFArrayGetCount(list_of(wanted)) < channel_count)
        return 0;
    *granted = copy(wanted, DICTIONARY);
    return make(SUBSCRIPTION);
}

Ref IOReportCreateSamples(Ref subscription, Ref wanted, Ref none)
{
    map();
    count(SAMPLES, 1);
    if (!as(subscription, SUBSCRIPTION) || !as(wanted, DICTIONARY) || none || words[NO_SAMPLES])
        return 0;
    Object *list = make(ARRAY), *from = as(list_of(wanted), ARRAY);
    for (long at = 0; from && at < from->count; at++)
        if (!(knobs(from->items[at]->channel)[FLAGS] & HIDDEN))
            append(list, entry(from->items[at]->channel, 1));
    words[SAMPLED] = list->count;
    return dictionary_of(list);
}

static Object *channel_of(Ref ref)
{
    Object *object = as(ref, DICTIONARY);
    if (object && object->channel < 0)
        misused();
    return object && object->channel >= 0 ? object : 0;
}

Ref IOReportChannelGetChannelName(Ref ref)
{
    Object *of = channel_of(ref);
    return of ? permanent(&channels[of->channel].name_text, channels[of->channel].name) : 0;
}

Ref IOReportChannelGetUnitLabel(Ref ref)
{
    Object *of = channel_of(ref);
    if (!of || !*channels[of->channel].label)
        return 0;
    return permanent(&channels[of->channel].label_text, channels[of->channel].label);
}

int32_t IOReportChannelGetFormat(Ref ref)
{
    Object *of = channel_of(ref);
    return of && knobs(of->channel)[FLAGS] & NOT_SIMPLE ? 2 : 1;
}

int64_t IOReportSimpleGetIntegerValue(Ref ref, int32_t at)
{
    Object *of = channel_of(ref);
    return of && !at ? of->value : INT64_MIN;
}

/* -- IOKit and the controller ---------------------------------------------------------------------------------------- */

enum { ITERATOR = 0x100, FIRST_ENTRY = 0x200, OPENED = 0x300 };
enum { INTEL = 1, SILICON = 2 };
static uint32_t next_entry;

Ref IOServiceMatching(const char *name)
{
    Object *made = make(DICTIONARY);
    append(made, text("IOProviderClass"));
    append(made, text(name));
    return made;
}

int32_t IOServiceGetMatchingServices(uint32_t port, Ref matching, uint32_t *found)
{
    Object *object = as(matching, DICTIONARY);
    int wanted = object && !port && !strcmp(object->items[1]->text, "AppleSMC");
    CFRelease(matching);
    if (!wanted)
        return (int32_t)0xe00002c2;
    next_entry = 0;
    count(ENTRIES, 1);
    *found = ITERATOR;
    return 0;
}

static const char *entry_name(uint32_t nth)
{
    static const char *const silicon[] = { "AppleSMC", "AppleSMCKeysEndpoint", "AppleSMCPMU" };
    if (words[CONTROLLER] == INTEL)
        return nth ? 0 : "AppleSMC";
    return words[CONTROLLER] == SILICON && nth < 3 ? silicon[nth] : 0;
}

uint32_t IOIteratorNext(uint32_t iterator)
{
    if (iterator != ITERATOR)
        misused();
    if (!entry_name(next_entry))
        return 0;
    count(ENTRIES, 1);
    return FIRST_ENTRY + next_entry++;
}

int32_t IORegistryEntryGetName(uint32_t entry, char *name)
{
    const char *of = entry >= FIRST_ENTRY ? entry_name(entry - FIRST_ENTRY) : 0;
    if (!of)
        return (int32_t)0xe00002c2;
    memset(name, 0, 128);
    strcpy(name, of);
    return 0;
}

int32_t IOObjectRelease(uint32_t object)
{
    if (!object || !words[ENTRIES])
        misused();
    words[ENTRIES]--;
    return 0;
}

uint32_t mach_task_self_ = 1;

int32_t IOServiceOpen(uint32_t service, uint32_t task, uint32_t type, uint32_t *connection)
{
    if (service < FIRST_ENTRY || !task || type)
        misused();
    if (words[CONTROLLER_REFUSES])
        return (int32_t)words[CONTROLLER_REFUSES];
    count(ENTRIES, 1);
    *connection = OPENED;
    return 0;
}

int32_t IOServiceClose(uint32_t connection)
{
    if (connection != OPENED || !words[ENTRIES])
        misused();
    words[ENTRIES]--;
    return 0;
}

typedef struct {
    uint32_t key;
    struct { uint8_t major, minor, build, reserved; uint16_t release; } vers;
    struct { uint16_t version, length; uint32_t cpu, gpu, mem; } limit;
    struct { uint32_t size, type; uint8_t attributes; } info;
    uint8_t result, status, data8;
    uint32_t data32;
    uint8_t bytes[32];
} Words80;
_Static_assert(sizeof(Words80) == 80, "the controller's struct");

int32_t IOConnectCallStructMethod(uint32_t connection, uint32_t selector, const void *in, size_t in_length, void *out,
                                  size_t *out_length)
{
    const Words80 *asked = in;
    Words80 *answer = out;
    count(CONTROLLER_CALLS, 1);
    if (connection != OPENED || selector != 2 || in_length != 80 || *out_length != 80) {
        misused();
        return (int32_t)0xe00002c2;
    }
    if (!words[CONTROLLER])
        return 0x10000003; /* MACH_SEND_INVALID_DEST: the service is gone */
    memset(answer, 0, sizeof *answer);
    for (int nth = 0; nth < MOST_KEYS; nth++) {
        volatile uint64_t *k = words + KEYS_AT + KEY * nth;
        if (!k[KEY_NAME] || k[KEY_NAME] != asked->key)
            continue;
        if (k[KEY_STATUS])
            return (int32_t)k[KEY_STATUS];
        answer->result = k[KEY_RESULT];
        if (asked->data8 == 9) {
            answer->info.size = k[KEY_SIZE];
            answer->info.type = k[KEY_TYPE];
        } else if (asked->data8 == 5 && asked->info.size == k[KEY_SIZE]) {
            uint64_t bytes = k[KEY_BYTES];
            memcpy(answer->bytes, &bytes, sizeof bytes);
        } else {
            misused();
        }
        return 0;
    }
    answer->result = 0x84;
    return 0;
}
