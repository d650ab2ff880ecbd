# Files of the tree that become strings in the program, so that it has none to find at run time. A generated source and not
# the assembler's .incbin: it needs no section names per system, and ninja knows what it is made of.
if(NOT CMAKE_SCRIPT_MODE_FILE)
  # lockstep_embed(<target> <file> <function>): <target> defines `std::string_view lockstep::<function>()`, the text of <file>.
  function(lockstep_embed target file function)
    set(source ${PROJECT_BINARY_DIR}/generated/${file}.cc)
    add_custom_command(
      OUTPUT ${source}
      COMMAND ${CMAKE_COMMAND} -DFILE=${PROJECT_SOURCE_DIR}/${file} -DFUNCTION=${function} -DSOURCE=${source}
        -P ${PROJECT_SOURCE_DIR}/cmake/embed.cmake
      DEPENDS ${PROJECT_SOURCE_DIR}/${file} ${PROJECT_SOURCE_DIR}/cmake/embed.cmake
      VERBATIM)
    target_sources(${target} PRIVATE ${source})
  endfunction()
  return()
endif()

file(READ ${FILE} text)
file(WRITE ${SOURCE} "#include <string_view>

namespace lockstep {

std::string_view ${FUNCTION}() {
  static constexpr std::string_view kText = R\"lockstep-text(${text})lockstep-text\";
  return kText;
}

}  // namespace lockstep
")
