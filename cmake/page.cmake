# The page that `lockstep serve` shows becomes a string in the program, so that it has no files to find at run time. A
# generated source and not the assembler's .incbin: it needs no section names per system, and ninja knows what it is
# made of.
if(NOT CMAKE_SCRIPT_MODE_FILE)
  function(lockstep_add_page)
    set(page ${PROJECT_SOURCE_DIR}/runtime/serve/page/index.html)
    set(source ${PROJECT_BINARY_DIR}/generated/runtime/serve/page_text.cc)
    add_custom_command(
      OUTPUT ${source}
      COMMAND ${CMAKE_COMMAND} -DPAGE=${page} -DSOURCE=${source} -P ${PROJECT_SOURCE_DIR}/cmake/page.cmake
      DEPENDS ${page} ${PROJECT_SOURCE_DIR}/cmake/page.cmake
      VERBATIM)
    target_sources(lockstep_serve PRIVATE ${source})
  endfunction()
  cmake_language(DEFER CALL lockstep_add_page)
  return()
endif()

file(READ ${PAGE} text)
file(WRITE ${SOURCE} "#include \"runtime/serve/page.h\"

namespace lockstep {

std::string_view PageText() {
  static constexpr std::string_view kText = R\"lockstep-page(${text})lockstep-page\";
  return kText;
}

}  // namespace lockstep
")
