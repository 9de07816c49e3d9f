#include "json.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH 32

enum Kind { NOTHING, NUMBER, TEXT, ARRAY, OBJECT };

struct Json {
    enum Kind kind;
    double number;
    char *text, *name; // name: of a member of an object
    Json *first, *next;
};

typedef struct {
    const char *at, *end;
    int depth;
} Reader;

static void blanks(Reader *r) {
    while (r->at < r->end && strchr(" \t\r\n", *r->at) && *r->at) r->at++;
}

static bool take(Reader *r, char c) {
    blanks(r);
    if (r->at >= r->end || *r->at != c) return false;
    r->at++;
    return true;
}

static bool word(Reader *r, const char *text) {
    size_t size = strlen(text);
    if ((size_t)(r->end - r->at) < size || memcmp(r->at, text, size)) return false;
    r->at += size;
    return true;
}

static char *utf8(char *to, unsigned code) {
    if (code < 0x80) *to++ = (char)code;
    else if (code < 0x800) *to++ = (char)(0xc0 | code >> 6), *to++ = (char)(0x80 | (code & 63));
    else if (code < 0x10000) *to++ = (char)(0xe0 | code >> 12), *to++ = (char)(0x80 | (code >> 6 & 63)), *to++ = (char)(0x80 | (code & 63));
    else *to++ = (char)(0xf0 | code >> 18), *to++ = (char)(0x80 | (code >> 12 & 63)), *to++ = (char)(0x80 | (code >> 6 & 63)), *to++ = (char)(0x80 | (code & 63));
    return to;
}

static bool hex(Reader *r, unsigned *code) {
    *code = 0;
    if (r->end - r->at < 4) return false;
    for (int i = 0; i < 4; i++) {
        const char *digits = "0123456789abcdef", *found = *r->at ? strchr(digits, *r->at >= 'A' && *r->at <= 'F' ? *r->at + 32 : *r->at) : NULL;
        if (!found) return false;
        *code = *code << 4 | (unsigned)(found - digits);
        r->at++;
    }
    return true;
}

static char *string(Reader *r) {
    if (!take(r, '"')) return NULL;
    char *text = malloc((size_t)(r->end - r->at) + 1), *to = text; // never longer than its source
    bool good = text != NULL;
    while (good && r->at < r->end && *r->at != '"') {
        unsigned code, low;
        good = false;
        if ((unsigned char)*r->at < 0x20) break;
        if (*r->at != '\\') {
            *to++ = *r->at++;
            good = true;
            continue;
        }
        if (++r->at >= r->end) break;
        char c = *r->at++;
        const char *plain = "\"\\/bfnrt", *found = c ? strchr(plain, c) : NULL;
        if (found) *to++ = "\"\\/\b\f\n\r\t"[found - plain];
        else if (c == 'u' && hex(r, &code) && code) { // a NUL would end the text early
            if (code >= 0xd800 && code < 0xdc00 && word(r, "\\u")) {
                if (!hex(r, &low) || low < 0xdc00 || low > 0xdfff) break;
                code = 0x10000 + ((code - 0xd800) << 10 | (low - 0xdc00));
            }
            to = utf8(to, code);
        } else break;
        good = true;
    }
    if (!good || r->at >= r->end || *r->at != '"') {
        free(text);
        return NULL;
    }
    r->at++;
    *to = 0;
    return text;
}

static Json *value(Reader *r);

static bool members(Reader *r, Json *into, char end) {
    Json **last = &into->first;
    if (take(r, end)) return true;
    do {
        char *name = into->kind == OBJECT ? string(r) : NULL;
        Json *member = into->kind == OBJECT && (!name || !take(r, ':')) ? NULL : value(r);
        if (!member) {
            free(name);
            return false;
        }
        member->name = name;
        *last = member;
        last = &member->next;
    } while (take(r, ','));
    return take(r, end);
}

static Json *value(Reader *r) {
    Json *made = calloc(1, sizeof *made);
    blanks(r);
    bool good = false;
    if (!made || r->at >= r->end || ++r->depth > MAX_DEPTH) good = false;
    else if (*r->at == '"') made->kind = TEXT, good = (made->text = string(r)) != NULL;
    else if (*r->at == '[') r->at++, made->kind = ARRAY, good = members(r, made, ']');
    else if (*r->at == '{') r->at++, made->kind = OBJECT, good = members(r, made, '}');
    else if (word(r, "null") || word(r, "true") || word(r, "false")) good = true;
    else if (*r->at == '-' || (*r->at >= '0' && *r->at <= '9')) { // strtod alone would take more than JSON has
        size_t size = 0;
        char digits[64], *end;
        while (r->at + size < r->end && size < sizeof digits - 1 && r->at[size] && strchr("+-.0123456789eE", r->at[size])) size++;
        memcpy(digits, r->at, size);
        digits[size] = 0;
        made->kind = NUMBER;
        made->number = strtod(digits, &end);
        good = !*end;
        r->at += size;
    }
    r->depth--;
    if (good) return made;
    json_free(made);
    return NULL;
}

Json *json_parse(const char *text, size_t size) {
    Reader r = {text, text + size, 0};
    Json *made = value(&r);
    blanks(&r);
    if (!made || r.at == r.end) return made;
    json_free(made);
    return NULL;
}

const Json *json_get(const Json *object, const char *name) {
    for (const Json *m = object && object->kind == OBJECT ? object->first : NULL; m; m = m->next)
        if (!strcmp(m->name, name)) return m;
    return NULL;
}

const Json *json_at(const Json *array, int index) {
    const Json *m = array && array->kind == ARRAY ? array->first : NULL;
    while (m && index-- > 0) m = m->next;
    return m;
}

int json_length(const Json *array) {
    int count = 0;
    if (!array || array->kind != ARRAY) return -1;
    for (const Json *m = array->first; m; m = m->next) count++;
    return count;
}

double json_number(const Json *value) { return value && value->kind == NUMBER ? value->number : NAN; }

const char *json_text(const Json *value) { return value && value->kind == TEXT ? value->text : NULL; }

void json_free(Json *value) {
    while (value) {
        Json *next = value->next;
        json_free(value->first);
        free(value->text);
        free(value->name);
        free(value);
        value = next;
    }
}
