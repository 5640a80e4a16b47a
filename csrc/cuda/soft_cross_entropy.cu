// soft_cross_entropy on a GPU: one launch computes the loss and the gradients of every row. A row takes three passes,
// with a reduction over the group of lanes that share it after each of the first two.
#include "common/joint_gradient.h"
#include "common/soft_cross_entropy.h"
#include "cuda/row_kernels.cuh"

namespace rmcla {
namespace {

template <typename W>
struct Largest {
  W most;
  W taint;  // see taint_of
};

struct MergeLargest {
  template <typename W>
  __device__ __forceinline__ Largest<W> operator()(const Largest<W>& a, const Largest<W>& b) const {
    return {std::fmax(a.most, b.most), a.taint + b.taint};
  }
};

template <typename W>
struct CrossEntropySums {
  W exponentials;  // sum of exp(z - highest)
  W labels;        // sum of y, before smoothing
  W gaps;          // sum of y' (highest - z), where y' is smoothed
};

struct AddCrossEntropySums {
  template <typename W>
  __device__ __forceinline__ CrossEntropySums<W> operator()(const CrossEntropySums<W>& a,
                                                            const CrossEntropySums<W>& b) const {
    return {a.exponentials + b.exponentials, a.labels + b.labels, a.gaps + b.gaps};
  }
};

template <typename T>
struct CrossEntropyOperator {
  using W = typename Storage<T>::Wide;

  Logits<T> logits;
  const W* soft;  // null if the labels are class indices, in `hard`
  const int64_t* hard;
  int64_t label_stride;
  Smoothing<W> smoothed;
  W* loss;
  T* grad_logits;
  W* grad_labels;  // may be null

  template <class Group, class Row>
  __device__ __forceinline__ void row(Group& group, const Row& row, int64_t r) const {
    const int64_t label = soft ? 0 : hard[r * label_stride];
    const bool known = label >= 0 && label < row.size();
    T* const to_logits = grad_logits + r * logits.classes;
    W* const to_labels = grad_labels ? grad_labels + r * logits.classes : nullptr;
    const auto y =
        row.beside(soft ? soft + r * label_stride : nullptr, [=](int index) { return W(int64_t(index) == label); });
    Largest<W> largest{-W(__builtin_huge_valf()), W(0)};
    row.each([&](int, W z) {
      largest.taint += taint_of(z);
      largest.most = std::fmax(largest.most, z);
    });
    largest = group.reduce(largest, MergeLargest());
    if (!known || !(largest.taint == W(0))) {
      const W nan = W(__builtin_nanf(""));
      row.write(to_logits, [=](int, W) { return nan; });
      if (to_labels) row.write(to_labels, [=](int, W) { return nan; });
      if (group.rank() == 0) loss[r] = nan;
      return;
    }
    const W highest = largest.most;
    CrossEntropySums<W> sums{W(0), W(0), W(0)};
    row.each([&](RowIndex at, W z) {
      const W label_here = y[at];
      sums.exponentials += std::exp(z - highest);
      sums.labels += label_here;
      sums.gaps += smoothed(label_here) * (highest - z);
    });
    sums = group.reduce(sums, AddCrossEntropySums());
    const W log_sum = std::log(sums.exponentials), mass = smoothed.mass(sums.labels);
    const W scale = mass / sums.exponentials, keep = smoothed.keep;
    row.write(to_logits, [&](RowIndex at, W z) { return std::exp(z - highest) * scale - smoothed(y[at]); });
    if (to_labels) row.write(to_labels, [=](int, W z) { return keep * ((highest - z) + log_sum); });
    if (group.rank() == 0) loss[r] = sums.gaps + mass * log_sum;
  }
};

// The losses' sum or mean, as PyTorch computes it.
Tensor reduced(const char* name, const Tensor& losses) {
  using torch::stable::detail::from;
  StableIValue stack[] = {from(losses), from(std::nullopt)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

std::tuple<Tensor, Tensor, std::optional<Tensor>> soft_cross_entropy(const Tensor& logits_, const Tensor& labels_,
                                                                     const std::string& reduction, bool label_gradient,
                                                                     double label_smoothing) {
  check_loss(logits_, labels_, reduction, label_smoothing);
  const DType dtype = dtype_of(logits_), wide = arithmetic_of(dtype);
  const bool hard = dtype_of(labels_) == DType::kLong;
  const Tensor logits = with_dense_rows(logits_);
  const Tensor labels = hard ? labels_ : with_dense_rows(as_dtype(labels_, wide));
  const Tensor losses = empty({logits.size(0)}, wide, logits), grad_logits = empty(logits.sizes(), dtype, logits);
  std::optional<Tensor> grad_labels;
  if (label_gradient) grad_labels = empty(logits.sizes(), wide, logits);
  if (logits.size(0) != 0) {
    visit_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      using W = typename Storage<T>::Wide;
      const CrossEntropyOperator<T> operator_{{logits, hard || rows_pack(labels)},
                                              hard ? nullptr : read<W>(labels),
                                              hard ? read<int64_t>(labels) : nullptr,
                                              labels.stride(0),
                                              {W(1 - label_smoothing), W(label_smoothing / double(logits.size(1)))},
                                              written<W>(losses),
                                              written<T>(grad_logits),
                                              written<W>(grad_labels)};
      launch_beside(logits, [&](cudaStream_t stream) { launch_rows<T>(operator_, stream); });
    });
  }
  const Tensor loss = reduction == "none" ? losses : reduced(reduction == "sum" ? "aten::sum" : "aten::mean", losses);
  return {loss, grad_logits, grad_labels};
}

[[maybe_unused]] const bool listed_soft_cross_entropy = implement<&soft_cross_entropy>("soft_cross_entropy");

}  // namespace
}  // namespace rmcla
