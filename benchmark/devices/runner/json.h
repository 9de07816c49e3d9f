// JSON in memory: enough to read commands. Sources: RFC 8259.
#ifndef JSON_H
#define JSON_H

#include <stddef.h>

typedef struct Json Json;

Json *json_parse(const char *text, size_t size);        // NULL if it is not one JSON value, or nested too deeply
const Json *json_get(const Json *object, const char *name); // NULL if there is none
const Json *json_at(const Json *array, int index);
int json_length(const Json *array);                     // -1 if it is none
double json_number(const Json *value);                  // NaN if it is none
const char *json_text(const Json *value);               // NULL if it is none
void json_free(Json *value);

#endif
