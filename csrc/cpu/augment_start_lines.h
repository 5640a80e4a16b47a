// The lines of a crop, put together as bytes.
#pragma once

#include <algorithm>
#include <cstring>

#include "common/augment_start.h"

namespace rmcla {

// One image on its way. A line is a row of one channel, or, channels last, a row of all channels.
struct CroppedImage {
  const uint8_t* pixels;  // (channels, height, width)
  Crop crop;
  int64_t channels, height, width;
  bool interleaved;    // channels last
  int64_t begin, end;  // the output columns that lie inside the image
  int64_t from;        // the smallest source column of these

  CroppedImage(const uint8_t* pixels, const Crop& crop, int64_t channels, int64_t height, int64_t width,
               bool interleaved)
      : pixels(pixels), crop(crop), channels(channels), height(height), width(width), interleaved(interleaved) {
    const int64_t right = int32_t(crop.right);
    const int64_t shift = crop.mirrored ? right : -right;  // of the image in the output
    begin = std::min(width, std::max<int64_t>(0, shift));
    end = std::max(begin, std::min(width, width + shift));
    from = crop.mirrored ? width - end + right : begin + right;
  }

  RMCLA_SHARED int64_t in_line() const { return interleaved ? channels : 1; }
  RMCLA_SHARED int64_t line_size() const { return in_line() * width; }
  RMCLA_SHARED int64_t lines() const { return interleaved ? height : channels * height; }

  // visit(channel, source row) for the lines [first, last) in the order of memory.
  template <class Visit>
  RMCLA_SHARED void each_line(int64_t first, int64_t last, Visit visit) const {
    int64_t channel = interleaved ? 0 : first / height, row = first - channel * height;
    for (int64_t line = first; line < last; ++line) {
      visit(channel, int64_t(source_row(crop, uint32_t(row))));
      if (++row == height) {
        row = 0;
        ++channel;
      }
    }
  }
};

// A run of a row, forwards or mirrored: eight bytes at a time, the last eight over what is there already.
RMCLA_SHARED void copy_run(const uint8_t* from, bool mirrored, uint8_t* to, int64_t count) {
  if (count < 8) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[mirrored ? count - 1 - i : i];
    return;
  }
  const int64_t last = count - 8;
  for (int64_t i = 0;; i = std::min(i + 8, last)) {
    uint64_t eight;
    std::memcpy(&eight, from + (mirrored ? last - i : i), 8);
    if (mirrored) eight = __builtin_bswap64(eight);
    std::memcpy(to + i, &eight, 8);
    if (i == last) return;
  }
}

// The same with `step` bytes from one output column to the next.
RMCLA_SHARED void scatter_run(const uint8_t* from, bool mirrored, uint8_t* to, int64_t count, int64_t step) {
  for (int64_t i = 0; i < count; ++i) to[i * step] = from[mirrored ? count - 1 - i : i];
}

// Three channels side by side, which the compiler turns into shuffles.
RMCLA_SHARED void interleave_three(const uint8_t* from, int64_t plane, bool mirrored, uint8_t* to, int64_t count) {
  const uint8_t *const a = from, *const b = from + plane, *const c = from + 2 * plane;
  if (mirrored) {
    for (int64_t i = 0, j = count - 1; i < count; ++i, --j) {
      to[3 * i] = a[j];
      to[3 * i + 1] = b[j];
      to[3 * i + 2] = c[j];
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      to[3 * i] = a[i];
      to[3 * i + 1] = b[i];
      to[3 * i + 2] = c[i];
    }
  }
}

// The lines [first, last) as bytes; what lies beyond a border is left as it is.
template <int Bytes>
RMCLA_SHARED void crop_lines(const CroppedImage& image, int64_t first, int64_t last, uint8_t* bytes) {
  const int64_t plane = image.height * image.width, step = image.in_line(), count = image.end - image.begin;
  const bool mirrored = image.crop.mirrored;
  if (count == 0) return;
  uint8_t* to = bytes + image.begin * step;
  image.each_line(first, last, [&](int64_t channel, int64_t row) __attribute__((always_inline)) {
    if (row < image.height) {
      const uint8_t* const from = image.pixels + channel * plane + row * image.width + image.from;
      if (step == 1) {
        copy_run(from, mirrored, to, count);
      } else if (step == 3) {
        interleave_three(from, plane, mirrored, to, count);
      } else {
        for (int64_t c = 0; c < step; ++c) scatter_run(from + c * plane, mirrored, to + c, count, step);
      }
    }
    to += image.line_size();
  });
}

}  // namespace rmcla
