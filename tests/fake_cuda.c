/* A fake CUDA driver for tests of control flow: device memory is the host's, and work is done at once. */
#include <stdlib.h>
#include <string.h>

typedef unsigned long long ptr;
static long captured, launched, buffers, streams;
/* What was recorded is told by number: once when recording ends, and at each launch. */
static void (*told)(long graph, int launch);
void tell(void (*f)(long, int)) { told = f; }

#ifndef INIT
#define INIT 0
#endif
int cuInit(unsigned f) { return f + INIT; }
int cuDeviceGet(int *d, int n) { *d = n; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)0x1122334455667788; return d; }
int cuCtxSetCurrent(void *c) { return c != (void *)0x1122334455667788; }
int cuStreamCreate(void **s, unsigned f) { *s = (void *)0x7766554433221100; streams++; return f != 1; }
int cuStreamDestroy_v2(void *s) { streams--; return s != (void *)0x7766554433221100; }
int cuStreamSynchronize(void *s) { return s != (void *)0x7766554433221100; }
int cuDeviceGetName(char *n, int l, int d) { strncpy(n, "fake GPU", l); return d; }
int cuDriverGetVersion(int *v) { *v = 12060; return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 8 : 7; return d; }
int cuMemGetInfo_v2(size_t *f, size_t *t) { *f = 3000ull << 20; *t = 8000ull << 20; return 0; }
int cuMemAlloc_v2(ptr *p, size_t n) { *p = (ptr)malloc(n); buffers++; return 0; }
int cuMemFree_v2(ptr p) { free((void *)p); buffers--; return 0; }
int cuMemAllocHost_v2(void **p, size_t n) { *p = malloc(n); return 0; }
int cuMemFreeHost(void *p) { free(p); return 0; }
int cuMemcpyHtoDAsync_v2(ptr d, void *h, size_t n, void *s) { memcpy((void *)d, h, n); return cuStreamSynchronize(s); }
int cuMemcpyDtoHAsync_v2(void *h, ptr d, size_t n, void *s) { memcpy(h, (void *)d, n); return cuStreamSynchronize(s); }
int cuStreamBeginCapture_v2(void *s, int m) { captured++; return m != 1; }
int cuStreamEndCapture(void *s, void **g) { *g = (void *)captured; told(captured, 0); return 0; }
int cuGraphInstantiateWithFlags(void **e, void *g, unsigned long long f) { *e = g; return f != 0; }
int cuGraphDestroy(void *g) { return 0; }
int cuGraphExecDestroy(void *g) { return 0; }
int cuGraphLaunch(void *e, void *s) { launched++; told((long)e, 1); return cuStreamSynchronize(s); }
int cuEventCreate(void **e, unsigned f) { *e = (void *)0x77; return f; }
int cuEventRecord(void *e, void *s) { return 0; }
int cuEventSynchronize(void *e) { return 0; }
int cuEventElapsedTime(float *m, void *a, void *b) { *m = 1.5f; return 0; }
int cuEventDestroy_v2(void *e) { return 0; }
int cuGetErrorString(int c, const char **w) { *w = c == 100 ? "no CUDA-capable device is detected" : "made up"; return 0; }
int counted(int what) { return what == 0 ? buffers : what == 1 ? captured : what == 2 ? launched : streams; }
