// joint_gradient and redistribute_labels on a GPU: one launch computes the objective, gradient, target and soft labels
// of every row.
#include "common/joint_row.h"
#include "cuda/row_kernels.cuh"
#include "cuda/tensors.h"

namespace rmcla {
namespace {

template <typename T>
struct JointOperator {
  using W = typename Storage<T>::Wide;

  const T* data;
  int64_t row_stride;
  int64_t rows;
  int classes;
  bool packed;
  const int64_t* labels;
  int64_t label_stride;
  const int64_t* given;
  int64_t given_stride;
  JointRule<W> rule;
  JointOutputs<T, W> out;
  int64_t out_stride;  // between the rows of the soft labels

  __device__ __forceinline__ const T* logits(int64_t r) const { return data + r * row_stride; }

  template <class Group, class Row>
  __device__ __forceinline__ void row(Group& group, const Row& row, int64_t r) const {
    const JointOutputs<T, W> here{
        out.objective ? out.objective + r : nullptr, out.grad_logits ? out.grad_logits + r * classes : nullptr,
        out.soft_labels ? out.soft_labels + r * out_stride : nullptr, out.target ? out.target + r : nullptr};
    const int64_t target = rule.target == Target::kGiven ? given[r * given_stride] : 0;
    joint_row(group, row, logits(r), labels[r * label_stride], target, rule, here);
  }
};

// The arguments of a launch without tensors, so that nvcc's device passes compile every kernel without PyTorch's
// headers.
struct JointLaunch {
  DType dtype;
  const void* logits;
  int64_t row_stride, rows;
  int classes;
  bool packed;
  const int64_t *labels, *given;
  int64_t label_stride, given_stride;
  Target target;
  LabelScheme scheme;
  double beta, gamma;
  int top_k;
  void *objective, *grad_logits, *soft_labels;
  int64_t* targets;
  int64_t out_stride;
};

[[maybe_unused]] void launch(const JointLaunch& a, cudaStream_t stream) {
  visit_float(a.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using W = typename Storage<T>::Wide;
    const JointOperator<T> operator_{
        static_cast<const T*>(a.logits),
        a.row_stride,
        a.rows,
        a.classes,
        a.packed,
        a.labels,
        a.label_stride,
        a.given,
        a.given_stride,
        {a.target, a.scheme, W(a.beta), W(a.gamma), a.top_k},
        {static_cast<W*>(a.objective), static_cast<T*>(a.grad_logits), static_cast<W*>(a.soft_labels), a.targets},
        a.out_stride};
    launch_rows<T>(operator_, stream);
  });
}

#if !defined(__CUDA_ARCH__)

// top_k, or 0 if it leaves no class out.
int checked_top_k(std::optional<int64_t> top_k, int64_t classes) {
  if (!top_k) return 0;
  TORCH_CHECK_VALUE(*top_k >= 1, "top_k must be at least 1; got ", *top_k);
  return *top_k >= classes - 1 ? 0 : int(*top_k);
}

// The arguments of a launch, without its outputs. The rows of `logits` must be dense.
JointLaunch prepare(const at::Tensor& logits, const at::Tensor& labels, double beta, double gamma,
                    std::optional<int64_t> top_k, LabelScheme scheme) {
  TORCH_CHECK_VALUE(beta > 0, "beta must be positive; got ", beta);
  TORCH_CHECK_VALUE(gamma > 0, "gamma must be positive; got ", gamma);
  JointLaunch a{};
  a.dtype = dtype_of(logits);
  a.logits = logits.const_data_ptr();
  a.row_stride = logits.stride(0);
  a.rows = logits.size(0);
  a.classes = int(logits.size(1));
  a.packed = rows_pack(logits);
  a.labels = labels.const_data_ptr<int64_t>();
  a.label_stride = labels.stride(0);
  a.target = Target::kMostConfusing;
  a.scheme = scheme;
  a.beta = beta;
  a.gamma = gamma;
  a.top_k = checked_top_k(top_k, logits.size(1));
  a.out_stride = logits.size(1);
  return a;
}

void run(const JointLaunch& a) {
  if (a.rows == 0) return;
  launch(a, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

std::tuple<at::Tensor, at::Tensor, std::optional<at::Tensor>, at::Tensor> joint_gradient(
    const at::Tensor& logits_, const at::Tensor& labels, std::string_view target,
    const std::optional<at::Tensor>& target_labels, double beta, double gamma, std::optional<int64_t> top_k,
    std::string_view label_scheme) {
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  check_logits(logits_);
  check_classes("labels", labels, logits_);
  const c10::cuda::CUDAGuard device(logits_.device());
  const at::Tensor logits = with_dense_rows(logits_);
  const LabelScheme scheme = parse_label_scheme(label_scheme);
  JointLaunch a = prepare(logits, labels, beta, gamma, top_k, scheme);
  a.target = parse_target(target);
  if (a.target == Target::kGiven) {
    TORCH_CHECK_VALUE(target_labels.has_value(), "target_labels must be given for target 'given'");
    check_classes("target", *target_labels, logits);
    a.given = target_labels->const_data_ptr<int64_t>();
    a.given_stride = target_labels->stride(0);
  }
  const auto wide = logits.options().dtype(wide_type(logits));
  const at::Tensor objective = at::empty({logits.size(0)}, wide);
  const at::Tensor grad_logits = at::empty(logits.sizes(), logits.options());
  const at::Tensor targets = at::empty({logits.size(0)}, labels.options());
  std::optional<at::Tensor> soft_labels;
  if (scheme != LabelScheme::kNone) soft_labels = at::empty(logits.sizes(), wide);
  a.objective = objective.mutable_data_ptr();
  a.grad_logits = grad_logits.mutable_data_ptr();
  a.soft_labels = soft_labels ? soft_labels->mutable_data_ptr() : nullptr;
  a.targets = targets.mutable_data_ptr<int64_t>();
  run(a);
  return {objective, grad_logits, soft_labels, targets};
}

void redistribute_labels_out(const at::Tensor& logits_, const at::Tensor& labels, double beta, double gamma,
                             std::optional<int64_t> top_k, std::string_view label_scheme, const at::Tensor& out) {
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  check_logits(logits_);
  check_classes("labels", labels, logits_);
  check_like("out", out, logits_);
  TORCH_CHECK_TYPE(out.scalar_type() == wide_type(logits_), "out must be ", wide_type(logits_), "; got ",
                   out.scalar_type());
  const c10::cuda::CUDAGuard device(logits_.device());
  const at::Tensor logits = with_dense_rows(logits_);
  const LabelScheme scheme = parse_label_scheme(label_scheme);
  TORCH_CHECK_VALUE(scheme != LabelScheme::kNone, "label_scheme must be 'main' or 'sup'; got 'none'");
  const bool in_place =
      out.stride(1) == 1 && (out.size(0) < 2 || out.stride(0) >= out.size(1)) && writable_beside(out, logits, labels);
  const at::Tensor result = in_place ? out : at::empty(out.sizes(), out.options());
  JointLaunch a = prepare(logits, labels, beta, gamma, top_k, scheme);
  a.packed = a.packed && rows_pack(result);
  a.soft_labels = result.mutable_data_ptr();
  a.out_stride = result.stride(0);
  run(a);
  if (!in_place) out.copy_(result);
  mark_written(out);
}

at::Tensor redistribute_labels(const at::Tensor& logits, const at::Tensor& labels, double beta, double gamma,
                               std::optional<int64_t> top_k, std::string_view label_scheme) {
  check_logits(logits);
  const c10::cuda::CUDAGuard device(logits.device());
  at::Tensor out = at::empty(logits.sizes(), logits.options().dtype(wide_type(logits)));
  redistribute_labels_out(logits, labels, beta, gamma, top_k, label_scheme, out);
  return out;
}

#endif

}  // namespace
}  // namespace rmcla

#if !defined(__CUDA_ARCH__)
TORCH_LIBRARY_IMPL(rmcla_fast, CUDA, m) {
  m.impl("joint_gradient", rmcla::joint_gradient);
  m.impl("redistribute_labels", rmcla::redistribute_labels);
  m.impl("redistribute_labels.out", rmcla::redistribute_labels_out);
}
#endif
