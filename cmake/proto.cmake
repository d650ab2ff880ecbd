# Wire schemas: proto/lockstep/v1/*.proto become the library lockstep_proto.
function(lockstep_add_proto target)
  set(out ${PROJECT_BINARY_DIR}/generated)
  file(MAKE_DIRECTORY ${out})
  file(GLOB_RECURSE schemas CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/proto/*.proto)
  set(generated "")
  foreach(schema IN LISTS schemas)
    file(RELATIVE_PATH relative ${PROJECT_SOURCE_DIR}/proto ${schema})
    string(REGEX REPLACE "\\.proto$" "" stem ${relative})
    set(files ${out}/${stem}.pb.cc ${out}/${stem}.pb.h ${out}/${stem}.grpc.pb.cc ${out}/${stem}.grpc.pb.h)
    add_custom_command(
      OUTPUT ${files}
      COMMAND ${LOCKSTEP_PROTOC} --proto_path=${PROJECT_SOURCE_DIR}/proto --cpp_out=${out} --grpc_out=${out}
              --plugin=protoc-gen-grpc=${LOCKSTEP_GRPC_PLUGIN} ${schema}
      DEPENDS ${schema}
      VERBATIM)
    list(APPEND generated ${files})
  endforeach()
  if(NOT generated)
    add_library(${target} INTERFACE)
    return()
  endif()
  add_library(${target} STATIC ${generated})
  target_include_directories(${target} SYSTEM PUBLIC ${out})
  target_link_libraries(${target} PUBLIC gRPC::grpc++ gRPC::grpc++_reflection protobuf::libprotobuf)
endfunction()
