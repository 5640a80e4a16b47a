// Checks of the arguments of the operators on rows of logits.
#pragma once

#include <cmath>

#include "common/checks.h"
#include "common/joint_gradient.h"

namespace rmcla {

inline Target parse_target(const std::string& word) {
  if (word == "mc") return Target::kMostConfusing;
  if (word == "ll") return Target::kLeastLikely;
  if (word == "untargeted") return Target::kUntargeted;
  if (word == "margin") return Target::kMargin;
  RMCLA_CHECK(word == "given", "target must be 'mc', 'll', 'untargeted', 'margin' or 'given'; got '", word, "'");
  return Target::kGiven;
}

inline LabelScheme parse_label_scheme(const std::string& word) {
  if (word == "main") return LabelScheme::kMain;
  if (word == "sup") return LabelScheme::kSup;
  RMCLA_CHECK(word == "none", "label_scheme must be 'main', 'sup' or 'none'; got '", word, "'");
  return LabelScheme::kNone;
}

inline void check_logits(const Tensor& logits) {
  RMCLA_CHECK(is_float(dtype_of(logits)), "logits must be float; got ", dtype_of(logits));
  RMCLA_CHECK(logits.dim() == 2 && logits.size(1) >= 2, "logits must have shape (B, C), C >= 2; got ",
              text_of(logits.sizes()));
  RMCLA_CHECK(logits.size(1) < INT32_MAX - 1024, "logits must have fewer than 2**31 - 1025 classes; got ",
              logits.size(1));
}

// Class indices must be int64 (B,) on the device of the logits.
inline void check_classes(const char* name, const Tensor& labels, const Tensor& logits) {
  RMCLA_CHECK(dtype_of(labels) == DType::kLong, name, " must be int64; got ", dtype_of(labels));
  RMCLA_CHECK(labels.dim() == 1 && labels.size(0) == logits.size(0), name, " must have shape (", logits.size(0),
              ",); got ", text_of(labels.sizes()));
  check_device(name, labels, "logits", logits);
}

inline void check_joint(const Tensor& logits, const Tensor& labels, double beta, double gamma,
                        std::optional<int64_t> top_k) {
  check_logits(logits);
  check_classes("labels", labels, logits);
  RMCLA_CHECK(beta > 0 && std::isfinite(beta), "beta must be positive and finite; got ", beta);
  RMCLA_CHECK(gamma > 0 && std::isfinite(gamma), "gamma must be positive and finite; got ", gamma);
  RMCLA_CHECK(!top_k || *top_k >= 1, "top_k must be at least 1; got ", *top_k);
}

// The targets of Target::kGiven, and none for another target.
inline std::optional<Tensor> checked_targets(Target target, const std::optional<Tensor>& target_labels,
                                             const Tensor& logits) {
  if (target != Target::kGiven) return {};
  RMCLA_CHECK(target_labels, "target_labels must be given for target 'given'");
  check_classes("target", *target_labels, logits);
  return target_labels;
}

inline LabelScheme checked_redistribution(const Tensor& logits, const Tensor& labels, double beta, double gamma,
                                          std::optional<int64_t> top_k, const std::string& label_scheme) {
  check_joint(logits, labels, beta, gamma, top_k);
  const LabelScheme scheme = parse_label_scheme(label_scheme);
  RMCLA_CHECK(scheme != LabelScheme::kNone, "label_scheme must be 'main' or 'sup'; got 'none'");
  return scheme;
}

inline void check_loss(const Tensor& logits, const Tensor& labels, const std::string& reduction,
                       double label_smoothing) {
  check_logits(logits);
  if (dtype_of(labels) == DType::kLong) {
    check_classes("labels", labels, logits);
  } else {
    RMCLA_CHECK(is_float(dtype_of(labels)), "labels must be float (B, C) or int64 (B,); got ", dtype_of(labels));
    check_like("labels", labels, "logits", logits);
  }
  RMCLA_CHECK(reduction == "mean" || reduction == "sum" || reduction == "none",
              "reduction must be 'mean', 'sum' or 'none'; got '", reduction, "'");
  // NaN does not lie in the range.
  RMCLA_CHECK(label_smoothing >= 0 && label_smoothing < 1, "label_smoothing must lie in [0, 1); got ", label_smoothing);
}

}  // namespace rmcla
