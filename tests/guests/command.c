/* A command in C, built for WASI preview 1. It reads its message, prints its
 * arguments and environment, and does what the data says. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char text[1 << 16];

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value ? value : "-";
}

int main(int argc, char **argv) {
    size_t length = fread(text, 1, sizeof text - 1, stdin);
    text[length] = 0;
    for (int i = 0; i < argc; i++) {
        printf("arg=%s\n", argv[i]);
    }
    printf("id=%s topic=%s attempt=%s of=%s greeting=%s\n", variable("GW_ID"), variable("GW_TOPIC"),
           variable("GW_ATTEMPT"), variable("GW_MAX_ATTEMPTS"), variable("GREETING"));
    printf("stdin=%s\n", text);
    const char *path = strstr(text, "\"open\":\"");
    if (path) {
        char name[256];
        sscanf(path + 8, "%255[^\"]", name);
        FILE *file = fopen(name, "r");
        printf("open=%s\n", file ? fgets(text, sizeof text, file) : "no");
    }
    if (strstr(text, "\"abort\"")) {
        abort();
    }
    if (strstr(text, "\"sleep\"")) {
        sleep(3600);
    }
    const char *code = strstr(text, "\"exit\":");
    if (code) {
        fprintf(stderr, "exit code set by the message");
        exit(atoi(code + 7));
    }
    return 0;
}
