/* Replacement of getaddrinfo for the proxy under test, loaded by LD_PRELOAD.
 *
 * RESOLVER_NAME is the name it answers for. RESOLVER_FILE is a file with a delay in milliseconds and
 * either addresses separated by commas or "nowhere" (name not found). Results carry no port, because
 * Rust sets it. Lookups of other names go to the real function. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int lookup(const char *, const char *, const struct addrinfo *, struct addrinfo **);

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
    lookup *real = (lookup *)dlsym(RTLD_NEXT, "getaddrinfo");
    const char *ours = getenv("RESOLVER_NAME"), *path = getenv("RESOLVER_FILE");
    if (!name || !ours || !path || strcmp(name, ours) != 0)
        return real(name, service, hints, found);
    char address[64];
    long milliseconds;
    FILE *file = fopen(path, "r");
    int read = file ? fscanf(file, "%ld %63s", &milliseconds, address) : 0;
    if (file)
        fclose(file);
    if (read != 2)
        return EAI_FAIL;
    struct timespec delay = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&delay, NULL);
    if (strcmp(address, "nowhere") == 0)
        return EAI_NONAME;
    for (char *one = strtok(address, ","); one; one = strtok(NULL, ",")) {
        int error = real(one, service, hints, found);
        if (error)
            return error;
        while (*found)
            found = &(*found)->ai_next;
    }
    return 0;
}
