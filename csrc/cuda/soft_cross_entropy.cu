// soft_cross_entropy on a GPU: one launch computes the loss and the gradients of every row.
#include "common/cross_entropy_row.h"
#include "cuda/row_kernels.cuh"
#include "cuda/tensors.h"

namespace rmcla {
namespace {

template <typename T>
struct CrossEntropyOperator {
  using W = typename Storage<T>::Wide;

  const T* data;
  int64_t row_stride;
  int64_t rows;
  int classes;
  bool packed;
  const W* soft;  // null if the labels are class indices, in `hard`
  const int64_t* hard;
  int64_t label_stride;
  Smoothing<W> smoothed;
  CrossEntropyOutputs<T, W> out;

  __device__ __forceinline__ const T* logits(int64_t r) const { return data + r * row_stride; }

  template <class Group, class Row>
  __device__ __forceinline__ void row(Group& group, const Row& row, int64_t r) const {
    const CrossEntropyOutputs<T, W> here{out.loss + r, out.grad_logits + r * classes,
                                         out.grad_labels ? out.grad_labels + r * classes : nullptr};
    const W* soft_row = soft ? soft + r * label_stride : nullptr;
    cross_entropy_row(group, row, soft_row, soft ? 0 : hard[r * label_stride], smoothed, here);
  }
};

struct CrossEntropyLaunch {
  DType dtype;
  const void* logits;
  int64_t row_stride, rows;
  int classes;
  bool packed;
  const void* soft;
  const int64_t* hard;
  int64_t label_stride;
  double smoothing;
  void *loss, *grad_logits, *grad_labels;
};

[[maybe_unused]] void launch(const CrossEntropyLaunch& a, cudaStream_t stream) {
  visit_float(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using W = typename Storage<T>::Wide;
    const CrossEntropyOperator<T> operator_{
        static_cast<const T*>(a.logits),
        a.row_stride,
        a.rows,
        a.classes,
        a.packed,
        static_cast<const W*>(a.soft),
        a.hard,
        a.label_stride,
        {W(1 - a.smoothing), W(a.smoothing / a.classes)},
        {static_cast<W*>(a.loss), static_cast<T*>(a.grad_logits), static_cast<W*>(a.grad_labels)}};
    launch_rows<T>(operator_, stream);
  });
}

#if !defined(__CUDA_ARCH__)

std::tuple<at::Tensor, at::Tensor, std::optional<at::Tensor>> soft_cross_entropy(const at::Tensor& logits_,
                                                                                 const at::Tensor& labels_,
                                                                                 std::string_view reduction,
                                                                                 bool label_gradient,
                                                                                 double label_smoothing) {
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  check_logits(logits_);
  TORCH_CHECK_VALUE(reduction == "mean" || reduction == "sum" || reduction == "none",
                    "reduction must be 'mean', 'sum' or 'none'; got '", reduction, "'");
  check_label_smoothing(label_smoothing);
  const c10::cuda::CUDAGuard device(logits_.device());
  const at::Tensor logits = with_dense_rows(logits_);
  const auto wide = logits.options().dtype(wide_type(logits));
  at::Tensor labels = labels_;
  const bool hard = labels.scalar_type() == at::kLong;
  if (hard) {
    check_classes("labels", labels, logits);
  } else {
    TORCH_CHECK_TYPE(at::isFloatingType(labels.scalar_type()), "labels must be float (B, C) or int64 (B,); got ",
                     labels.scalar_type());
    check_like("labels", labels, logits);
    labels = with_dense_rows(labels.to(wide_type(logits)));
  }
  const at::Tensor losses = at::empty({logits.size(0)}, wide);
  const at::Tensor grad_logits = at::empty(logits.sizes(), logits.options());
  std::optional<at::Tensor> grad_labels;
  if (label_gradient) grad_labels = at::empty(logits.sizes(), wide);
  if (logits.size(0) != 0) {
    CrossEntropyLaunch a{};
    a.dtype = dtype_of(logits);
    a.logits = logits.const_data_ptr();
    a.row_stride = logits.stride(0);
    a.rows = logits.size(0);
    a.classes = int(logits.size(1));
    a.packed = rows_pack(logits) && (hard || rows_pack(labels));
    a.soft = hard ? nullptr : labels.const_data_ptr();
    a.hard = hard ? labels.const_data_ptr<int64_t>() : nullptr;
    a.label_stride = labels.stride(0);
    a.smoothing = label_smoothing;
    a.loss = losses.mutable_data_ptr();
    a.grad_logits = grad_logits.mutable_data_ptr();
    a.grad_labels = grad_labels ? grad_labels->mutable_data_ptr() : nullptr;
    launch(a, c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  const at::Tensor loss = reduction == "none" ? losses : reduction == "sum" ? losses.sum() : losses.mean();
  return {loss, grad_logits, grad_labels};
}

#endif

}  // namespace
}  // namespace rmcla

#if !defined(__CUDA_ARCH__)
TORCH_LIBRARY_IMPL(rmcla_fast, CUDA, m) { m.impl("soft_cross_entropy", rmcla::soft_cross_entropy); }
#endif
