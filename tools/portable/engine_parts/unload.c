// What GCC's crtbeginS.o does and zig does not link: when a library is closed, what it has registered for the end of the
// program is run. Without it that end jumps into memory that is not mapped any more; ggml closes each CPU variant that it
// only asked for its score.
extern void *__dso_handle;
void __cxa_finalize(void *);

__attribute__((destructor)) static void run_exit_handlers(void) { __cxa_finalize(&__dso_handle); }
