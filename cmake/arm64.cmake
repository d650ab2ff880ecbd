# Cross build for 64-bit ARM on a Debian machine: compiler from g++-aarch64-linux-gnu, libraries from the sysroot that
# deploy/arm64_sysroot.sh makes, programs run by qemu-user-static.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

get_filename_component(arm64_root ${CMAKE_CURRENT_LIST_DIR}/../build/arm64-sysroot ABSOLUTE)
set(CMAKE_SYSROOT ${arm64_root})
set(CMAKE_FIND_ROOT_PATH ${arm64_root})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(ENV{PKG_CONFIG_LIBDIR} ${arm64_root}/usr/lib/aarch64-linux-gnu/pkgconfig:${arm64_root}/usr/share/pkgconfig)
set(ENV{PKG_CONFIG_SYSROOT_DIR} ${arm64_root})

# Code generators run on the build machine.
set(LOCKSTEP_PROTOC /usr/bin/protoc CACHE STRING "protoc")
set(LOCKSTEP_GRPC_PLUGIN /usr/bin/grpc_cpp_plugin CACHE STRING "protoc plugin for gRPC")
set(CMAKE_CROSSCOMPILING_EMULATOR "qemu-aarch64-static;-L;${arm64_root}")
