// augment on the CPU: the lines of each crop are copied as bytes. If a crop reaches beyond a border, its image is first
// filled with `fill`.
#include <torch/library.h>

#include <cstring>

#include "common/augment_arguments.h"
#include "cpu/augment_lines.h"
#include "cpu/elementwise.h"
#include "cpu/kernels.h"
#include "cpu/labels.h"

namespace rmcla {
namespace {

at::Tensor augment(const at::Tensor& dataset, const at::Tensor& index, const at::Tensor& rng, int64_t padding,
                   bool flip, int64_t fill, bool channels_last) {
  at::AutoDispatchBelowADInplaceOrView guard;
  check_augmentation(dataset, index, rng, padding, fill);
  const int64_t batch = index.size(0), channels = dataset.size(1), height = dataset.size(2), width = dataset.size(3);
  // The index is checked before anything is written.
  const at::Tensor chosen = batch ? checked_classes("index", index, dataset.size(0)) : index;
  const at::Tensor images = at::empty({batch, channels, height, width}, dataset.options(),
                                      channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
  if (images.numel() == 0) return images;
  const uint8_t* const pixels = dataset.const_data_ptr<uint8_t>();
  const int64_t* const row = chosen.const_data_ptr<int64_t>();
  const int64_t seed = rng.const_data_ptr<int64_t>()[0], step = rng.const_data_ptr<int64_t>()[rng.stride(0)];
  uint8_t* const to = images.mutable_data_ptr<uint8_t>();
  const int64_t image_size = channels * height * width;
  const bool interleaved = channels_last && channels > 1;
  constexpr int64_t kBytesATask = 1 << 15;
  at::parallel_for(0, batch, std::max<int64_t>(1, kBytesATask / image_size), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const Crop crop = crop_of(seed, step, b, uint32_t(padding), flip);
      const CroppedImage image(pixels + row[b] * image_size, crop, channels, height, width, interleaved);
      if (!image.whole()) std::memset(to + b * image_size, int(fill), size_t(image_size));
      kernels().crop_lines(image, to + b * image_size);
    }
  });
  return images;
}

}  // namespace

TORCH_LIBRARY_IMPL(rmcla_fast, CPU, m) { m.impl("augment", augment); }

}  // namespace rmcla
