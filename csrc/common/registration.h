// Registration of the operators' kernels through PyTorch's stable ABI. It checks no types, so every library also tells
// the types of its kernels, and Python compares them with the schemas.
#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "common/tensors.h"

namespace rmcla {

// One line for each operator of this library, as `name(Tensor, Optional[int]) -> (Tensor, Tensor)`. A function that is
// not hidden would share its static variable with all libraries of a process.
C10_HIDDEN inline std::string& operator_types() {
  static std::string lines;
  return lines;
}

// The name of an argument's or result's type, as PyTorch prints it.
template <class T>
struct TypeName {
  static_assert(sizeof(T) == 0, "use Tensor, double, int64_t, bool, std::string, or a std::optional of these");
};
template <>
struct TypeName<Tensor> {
  static std::string get() { return "Tensor"; }
};
template <>
struct TypeName<double> {
  static std::string get() { return "float"; }
};
template <>
struct TypeName<int64_t> {
  static std::string get() { return "int"; }
};
template <>
struct TypeName<bool> {
  static std::string get() { return "bool"; }
};
template <>
struct TypeName<std::string> {
  static std::string get() { return "str"; }
};
template <class T>
struct TypeName<std::optional<T>> {
  static std::string get() { return "Optional[" + TypeName<T>::get() + "]"; }
};
template <>
struct TypeName<void> {
  static std::string get() { return "()"; }
};
template <class... T>
struct TypeName<std::tuple<T...>> {
  static std::string get() {
    std::string names;
    ((names += (names.empty() ? "" : ", ") + TypeName<T>::get()), ...);
    return "(" + names + ")";
  }
};
template <class Result, class... Arguments>
struct TypeName<Result(Arguments...)> {
  static std::string get() {
    using Types = std::tuple<std::remove_cv_t<std::remove_reference_t<Arguments>>...>;
    return TypeName<Types>::get() + " -> " + TypeName<Result>::get();
  }
};

// The argument on PyTorch's stack as T, whose owner is then the caller.
template <class T>
T unboxed(StableIValue value) {
  return torch::stable::detail::to<T>(value);
}
// PyTorch's own conversion of a string, in the headers up to torch 2.13, leaks it.
template <>
inline std::string unboxed(StableIValue value) {
  const StringHandle handle = torch::stable::detail::to<StringHandle>(value);
  size_t length;
  const char* characters;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &characters));
  std::string word(characters, length);
  STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
  return word;
}

// Takes the arguments of `kernel` from PyTorch's stack, and puts its results there.
template <class Function, Function* kernel>
struct Boxed;
template <class Result, class... Arguments, Result (*kernel)(Arguments...)>
struct Boxed<Result(Arguments...), kernel> {
  static void call(StableIValue* stack, uint64_t, uint64_t) { call(stack, std::index_sequence_for<Arguments...>()); }

 private:
  template <size_t... I>
  static void call(StableIValue* stack, std::index_sequence<I...>) {
    // Braces, so that the arguments are taken in this order.
    const std::tuple<std::remove_cv_t<std::remove_reference_t<Arguments>>...> arguments{
        unboxed<std::remove_cv_t<std::remove_reference_t<Arguments>>>(stack[I])...};
    if constexpr (std::is_void_v<Result>) {
      std::apply(kernel, arguments);
    } else {
      push(stack, std::apply(kernel, arguments));
    }
  }
  static void push(StableIValue* stack, const Tensor& result) { stack[0] = torch::stable::detail::from(result); }
  template <class... Results>
  static void push(StableIValue* stack, const std::tuple<Results...>& results) {
    std::apply([&](const auto&... result) { ((*stack++ = torch::stable::detail::from(result)), ...); }, results);
  }
};

// Registers `kernel` for the operator `name` in the library of a device.
template <auto* kernel>
void implement(torch::stable::detail::StableLibrary& library, const char* name) {
  using Function = std::remove_pointer_t<decltype(kernel)>;
  library.impl(name, Boxed<Function, kernel>::call);
  operator_types() += name + TypeName<Function>::get() + "\n";
}

}  // namespace rmcla

#if defined(_WIN32)
#define RMCLA_EXPORT __declspec(dllexport)
#else
#define RMCLA_EXPORT __attribute__((visibility("default")))
#endif

// Once in each library.
#define RMCLA_EXPORT_OPERATOR_TYPES() \
  extern "C" RMCLA_EXPORT const char* rmcla_operators() { return ::rmcla::operator_types().c_str(); }
