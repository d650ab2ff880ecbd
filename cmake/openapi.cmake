# runtime/serve/openapi.json as text inside the program, which publishes it.
set(openapi ${PROJECT_SOURCE_DIR}/runtime/serve/openapi.json)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${openapi})
file(READ ${openapi} openapi_text)
file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/generated/runtime/serve/openapi_generated.h @ONLY CONTENT
"#pragma once
inline constexpr char kOpenApi[] = R\"openapi(@openapi_text@)openapi\";
")
