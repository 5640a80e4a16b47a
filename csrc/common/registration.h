// The kernels of a library, for PyTorch's stable ABI. It checks no types, so the library first tells the types of its
// kernels, Python compares them with the schemas, and only then the kernels are registered.
#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/tensors.h"

namespace rmcla {

// The name of a type as PyTorch prints it.
inline std::string type_name(Type<void>) { return "()"; }
inline std::string type_name(Type<Tensor>) { return "Tensor"; }
inline std::string type_name(Type<double>) { return "float"; }
inline std::string type_name(Type<int64_t>) { return "int"; }
inline std::string type_name(Type<bool>) { return "bool"; }
inline std::string type_name(Type<std::string>) { return "str"; }
template <class T>
std::string type_name(Type<std::optional<T>>) {
  return "Optional[" + type_name(Type<T>()) + "]";
}
template <class... T>
std::string type_name(Type<std::tuple<T...>>) {
  std::string names;
  ((names += (names.empty() ? "" : ", ") + type_name(Type<T>())), ...);
  return "(" + names + ")";
}

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

struct Operator {
  std::string name;
  std::string types;  // as `(Tensor, Optional[int]) -> (Tensor, Tensor)`
  void (*kernel)(StableIValue*, uint64_t, uint64_t);
};

// The operators of this library. A function that is not hidden would share its static variable with all libraries of a
// process.
C10_HIDDEN inline std::vector<Operator>& operators() {
  static std::vector<Operator> all;
  return all;
}

// Takes the arguments of `kernel` from PyTorch's stack, and puts its results there.
template <class Function, Function* kernel>
struct Boxed;
template <class Result, class... Arguments, Result (*kernel)(Arguments...)>
struct Boxed<Result(Arguments...), kernel> {
  using Values = std::tuple<std::remove_cv_t<std::remove_reference_t<Arguments>>...>;

  static std::string types() { return type_name(Type<Values>()) + " -> " + type_name(Type<Result>()); }

  static void call(StableIValue* stack, uint64_t, uint64_t) { call(stack, std::index_sequence_for<Arguments...>()); }

 private:
  template <size_t... I>
  static void call(StableIValue* stack, std::index_sequence<I...>) {
    // Braces, so that the arguments are taken in this order.
    const Values arguments{unboxed<std::tuple_element_t<I, Values>>(stack[I])...};
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

// Lists `kernel` as the operator `name` of this library. The result is only there to initialise a static variable.
template <auto* kernel>
bool implement(const char* name) {
  using Kernel = Boxed<std::remove_pointer_t<decltype(kernel)>, kernel>;
  operators().push_back({name, Kernel::types(), Kernel::call});
  return true;
}

}  // namespace rmcla

#if defined(_WIN32)
#define RMCLA_EXPORT extern "C" __declspec(dllexport)
#else
#define RMCLA_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// The two functions of a library that Python calls: one gives a line for each operator, with its name and types, and
// the other one registers an operator's kernel with PyTorch for `device`.
#define RMCLA_LIBRARY(device) RMCLA_LIBRARY_OF("rmcla_fast", device)
#define RMCLA_LIBRARY_OF(space, device)                                                                               \
  RMCLA_EXPORT const char* rmcla_operators() {                                                                        \
    static const std::string lines = [] {                                                                             \
      std::string text;                                                                                               \
      for (const ::rmcla::Operator& one : ::rmcla::operators()) text += one.name + one.types + "\n";                  \
      return text;                                                                                                    \
    }();                                                                                                              \
    return lines.c_str();                                                                                             \
  }                                                                                                                   \
  RMCLA_EXPORT void rmcla_register(const char* name) {                                                                \
    using torch::stable::detail::StableLibrary;                                                                       \
    /* It is never deleted, since that would remove the kernels while PyTorch ends. */                                \
    static StableLibrary& library = *new StableLibrary(StableLibrary::Kind::IMPL, space, device, __FILE__, __LINE__); \
    for (const ::rmcla::Operator& one : ::rmcla::operators())                                                         \
      if (one.name == name) library.impl(name, one.kernel);                                                           \
  }
