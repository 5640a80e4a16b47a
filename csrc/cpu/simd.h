// Vectors of the compiler's vector extension, and the functions on them that the kernels need.
#pragma once

#include "common/macros.h"
#include "cpu/standard_headers.h"

namespace rmcla::simd {

template <typename T, int Bytes>
struct Lanes {
  using Integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  typedef T Vector __attribute__((vector_size(Bytes)));
  typedef Integer Mask __attribute__((vector_size(Bytes)));  // a comparison gives -1 for true and 0 for false
  typedef std::make_unsigned_t<Integer> Bits __attribute__((vector_size(Bytes)));
  static constexpr int kCount = Bytes / int(sizeof(T));
};

template <typename V>
RMCLA_SHARED V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// Loads `bytes` bytes; the lanes after them are 0.
template <typename V>
RMCLA_SHARED V load_part(const void* from, int64_t bytes) {
  V v{};
  std::memcpy(&v, from, size_t(bytes));
  return v;
}

template <typename V>
RMCLA_SHARED void store(void* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

template <typename V>
constexpr int count_of = int(sizeof(V) / sizeof(std::declval<V>()[0]));

// A vector with x in every lane. Subtracting zero, unlike adding it, keeps -0.
template <typename V, typename T>
RMCLA_SHARED V splat(T x) {
  return x - V{};
}

template <typename To, typename From>
RMCLA_SHARED To bits(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &v, sizeof to);
  return to;
}

template <typename V, size_t... I>
RMCLA_SHARED V iota(std::index_sequence<I...>) {
  return V{std::remove_reference_t<decltype(V{}[0])>(I)...};
}

template <typename V>
RMCLA_SHARED V iota() {
  return iota<V>(std::make_index_sequence<count_of<V>>());
}

// a * b + c, rounded only once if the instruction set has fused multiply-add.
template <typename V>
RMCLA_SHARED V multiply_add(V a, V b, V c) {
#if defined(RMCLA_INSTRUCTION_SETS)
  constexpr bool wide = sizeof(V{}[0]) == 8;
  if constexpr (sizeof(V) == 64 && wide) return V(_mm512_fmadd_pd(__m512d(a), __m512d(b), __m512d(c)));
  if constexpr (sizeof(V) == 64 && !wide) return V(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
  if constexpr (sizeof(V) == 32 && wide) return V(_mm256_fmadd_pd(__m256d(a), __m256d(b), __m256d(c)));
  if constexpr (sizeof(V) == 32 && !wide) return V(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
#endif
  return a * b + c;
}

template <typename V>
RMCLA_SHARED V minimum(V a, V b) {
  return a < b ? a : b;
}

template <typename V>
RMCLA_SHARED V maximum(V a, V b) {
  return a > b ? a : b;
}

template <int Step, typename V, size_t... I>
RMCLA_SHARED V swapped(V v, std::index_sequence<I...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(v, v, int(I ^ Step)...);
#else
  using Integer = std::conditional_t<sizeof(V{}[0]) == 8, int64_t, int32_t>;
  typedef Integer Order __attribute__((vector_size(sizeof(V))));
  return __builtin_shuffle(v, Order{Integer(I ^ Step)...});
#endif
}

// Combines all lanes in a fixed order, so that the result is the same on every run.
template <typename V, int Step = count_of<V> / 2, typename F>
RMCLA_SHARED auto reduce(V v, F combine) {
  if constexpr (Step == 0) {
    return v[0];
  } else {
    return reduce<V, Step / 2>(combine(v, swapped<Step>(v, std::make_index_sequence<count_of<V>>())), combine);
  }
}

template <typename V>
RMCLA_SHARED auto lowest_lane(V v) {
  return reduce(v, [](V a, V b) __attribute__((always_inline)) { return minimum(a, b); });
}

template <typename V>
RMCLA_SHARED auto highest_lane(V v) {
  return reduce(v, [](V a, V b) __attribute__((always_inline)) { return maximum(a, b); });
}

template <typename V>
RMCLA_SHARED auto sum_of_lanes(V v) {
  return reduce(v, [](V a, V b) __attribute__((always_inline)) { return a + b; });
}

// Whether a comparison is true in any lane.
template <typename M>
RMCLA_SHARED bool any(M mask) {
  typedef int64_t Words __attribute__((vector_size(sizeof(M))));
  return reduce(bits<Words>(mask), [](Words a, Words b) __attribute__((always_inline)) { return a | b; }) != 0;
}

// exp(x) * 2^kExponentShift<T> for x <= 0, to 2 units in the last place. The shifted value is a normal number also if
// exp(x) is subnormal or 0, so that quotients of two such values are accurate down to subnormal results and 0.
template <typename T>
constexpr int kExponentShift = sizeof(T) == 8 ? 128 : 32;

template <typename V>
RMCLA_SHARED V shifted_exp(V x) {
  using T = std::remove_reference_t<decltype(V{}[0])>;
  using Bits = typename Lanes<T, int(sizeof(V))>::Bits;
  using Word = std::remove_reference_t<decltype(Bits{}[0])>;
  constexpr bool wide = sizeof(T) == 8;
  constexpr int mantissa = wide ? 52 : 23;
  constexpr Word bias = (wide ? 1023 : 127) + kExponentShift<T>;
  const V least = splat<V>(T(wide ? -790.0 : -108.0));  // below this, quotients are 0
  x = x < least ? least : x;
  // n = round(x / ln 2) is in the low bits of the sum, and x = n ln 2 + r. ln 2 has two parts, so that n times the
  // first one is exact.
  const T magic = wide ? T(6755399441055744.0) : T(12582912.0);
  const V sum = multiply_add(x, splat<V>(T(1.44269504088896340736)), splat<V>(magic));
  const V n = sum - magic;
  const V r = multiply_add(n, splat<V>(T(wide ? -1.42860682030941723212e-6 : 2.12194440e-4)),
                           multiply_add(n, splat<V>(T(wide ? -6.93145751953125e-1 : -0.693359375)), x));
  V p;
  if constexpr (wide) {  // a Taylor polynomial, whose first omitted term is below 2^-57
    p = splat<V>(T(1.0 / 6227020800.0));
    for (const T c : {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
                      1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5})
      p = multiply_add(p, r, splat<V>(c));
  } else {  // the minimax polynomial of Cephes' expf
    p = splat<V>(T(1.9875691500e-4));
    for (const T c : {1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1})
      p = multiply_add(p, r, splat<V>(c));
  }
  p = multiply_add(p, V(r * r), r) + T(1);
  // The exponent is computed in unsigned integers: in lanes that hold no logit, n can have any value.
  return p * bits<V>(Bits((bits<Bits>(sum) << mantissa) + (bias << mantissa)));
}

}  // namespace rmcla::simd
