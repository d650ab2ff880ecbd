// Which JSON schemas an answer can be kept to. What is not kept exactly is refused by name, rather
// than overlooked; and so is what could take long: a schema comes from a stranger.
#pragma once

#include <string>

#include "runtime/base/status.h"
#include "runtime/text/json_value.h"

namespace lockstep {

inline constexpr int kMostProperties = 128;  // of an object

// Kept: type (one or several), properties, required, additionalProperties, items, prefixItems,
// minItems, maxItems, minLength, maxLength, pattern, format, minimum, maximum, exclusiveMinimum,
// exclusiveMaximum, multipleOf (of integers), enum, const, anyOf, oneOf whose alternatives exclude
// each other, allOf with one schema, $ref within the schema, true. Annotations are overlooked.
// `where` names the schema in errors ("response_format.json_schema.schema"). A RequestError names
// the place and the keyword.
Status CheckSchema(const JsonValue& schema, const std::string& where);

// The schema that a local $ref names ("#", "#/$defs/a"); null: there is none.
const JsonValue* ResolveReference(const JsonValue& root, const std::string& reference);

}  // namespace lockstep
