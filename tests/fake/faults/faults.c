/* LD_PRELOAD library: makes calls of pthread_create, the allocator, accept4 and open of /dev/null fail on request, as a machine
 * without threads, memory or descriptors does.
 *
 * WATTSPAN_TEST_FAULTS names a file of 64-bit words that the library maps and the test changes at run time: a block of
 * BLOCK words for each kind, then the offsets in the program between which a caller is SQLite (two functions). The calls of
 * a kind after the first `pass` fail, `fail` of them; allocations below `min_bytes` are not counted.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { THREAD, MEMORY, SQLITE, ACCEPT, RESERVE, KINDS };
enum { PASS, FAIL, MIN_BYTES, CALLS, FAILED, BLOCK };
enum { SQLITE_RANGES = 2, WORDS = KINDS * BLOCK + 2 * SQLITE_RANGES };

/* The allocator of the C library. */
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static _Atomic uint64_t *words;
static uintptr_t program;

static int find_program(struct dl_phdr_info *info, size_t size, void *ignored) {
  (void)size, (void)ignored;
  program = info->dlpi_addr; /* The first object is the program. */
  return 1;
}

__attribute__((constructor)) static void map_words(void) {
  const char *path = getenv("WATTSPAN_TEST_FAULTS");
  int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
  if (file < 0) return;
  dl_iterate_phdr(find_program, NULL);
  void *mapped = mmap(NULL, WORDS * sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (mapped != MAP_FAILED) words = mapped;
}

static bool fails(int kind, size_t bytes) {
  if (!words) return false;
  _Atomic uint64_t *of = words + kind * BLOCK;
  if (bytes < of[MIN_BYTES]) return false;
  uint64_t nth = atomic_fetch_add(&of[CALLS], 1);
  if (nth < of[PASS] || nth - of[PASS] >= of[FAIL]) return false;
  atomic_fetch_add(&of[FAILED], 1);
  return true;
}

static int kind_of(void *caller) {
  if (!words) return MEMORY;
  uint64_t offset = (uintptr_t)caller - program;
  for (int range = 0; range < SQLITE_RANGES; range++) {
    _Atomic uint64_t *bounds = words + KINDS * BLOCK + 2 * range;
    if (offset >= bounds[0] && offset < bounds[1]) return SQLITE;
  }
  return MEMORY;
}

#define CALLER_KIND kind_of(__builtin_return_address(0))

static void *no_memory(void) {
  errno = ENOMEM;
  return NULL;
}

void *malloc(size_t bytes) { return fails(CALLER_KIND, bytes) ? no_memory() : __libc_malloc(bytes); }

void *calloc(size_t count, size_t bytes) {
  return fails(CALLER_KIND, count * bytes) ? no_memory() : __libc_calloc(count, bytes);
}

void *realloc(void *old, size_t bytes) {
  return bytes && fails(CALLER_KIND, bytes) ? no_memory() : __libc_realloc(old, bytes);
}

void *aligned_alloc(size_t alignment, size_t bytes) {
  return fails(CALLER_KIND, bytes) ? no_memory() : __libc_memalign(alignment, bytes);
}

int posix_memalign(void **result, size_t alignment, size_t bytes) {
  if (fails(CALLER_KIND, bytes)) return ENOMEM;
  void *memory = __libc_memalign(alignment, bytes);
  if (!memory) return ENOMEM;
  *result = memory;
  return 0;
}

int accept4(int listener, struct sockaddr *restrict address, socklen_t *restrict length, int flags) {
  static int (*next)(int, struct sockaddr *restrict, socklen_t *restrict, int);
  if (!next) next = (int (*)(int, struct sockaddr *restrict, socklen_t *restrict, int))dlsym(RTLD_NEXT, "accept4");
  if (!fails(ACCEPT, 0)) return next(listener, address, length, flags);
  errno = ENOMEM;
  return -1;
}

int open64(const char *path, int flags, ...) {
  static int (*next)(const char *, int, ...);
  if (!next) next = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
  if (strcmp(path, "/dev/null") == 0 && fails(RESERVE, 0)) {
    errno = EMFILE;
    return -1;
  }
  va_list more;
  va_start(more, flags);
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
  va_end(more);
  return next(path, flags, mode);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
  static int (*next)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
  if (!next) next = (int (*)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *))dlsym(RTLD_NEXT, "pthread_create");
  return fails(THREAD, 0) ? EAGAIN : next(thread, attributes, run, argument);
}
