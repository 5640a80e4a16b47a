// Copies a crop of an image, line by line, as bytes.
#pragma once

#include <algorithm>
#include <cstring>

#include "common/augment.h"

namespace rmcla {

// An image of the data set and its crop. A line is one row of the output in memory: a row of one channel or, if the
// output is channels last, a row of all channels.
struct CroppedImage {
  const uint8_t* pixels;  // (channels, height, width)
  Crop crop;
  int64_t channels, height, width;
  bool interleaved;    // whether the output is channels last
  int64_t begin, end;  // the output columns whose source is inside the image
  int64_t from;        // the smallest source column among these

  CroppedImage(const uint8_t* pixels, const Crop& crop, int64_t channels, int64_t height, int64_t width,
               bool interleaved)
      : pixels(pixels), crop(crop), channels(channels), height(height), width(width), interleaved(interleaved) {
    const int64_t right = int32_t(crop.right);
    const int64_t shift = crop.mirrored ? right : -right;  // how far the image lies to the right in the output
    begin = std::min(width, std::max<int64_t>(0, shift));
    end = std::max(begin, std::min(width, width + shift));
    from = crop.mirrored ? width - end + right : begin + right;
  }

  RMCLA_SHARED int64_t in_line() const { return interleaved ? channels : 1; }
  RMCLA_SHARED int64_t line_size() const { return in_line() * width; }
  RMCLA_SHARED int64_t lines() const { return interleaved ? height : channels * height; }
  RMCLA_SHARED bool whole() const { return crop.down == 0 && end - begin == width; }  // no pixel is beyond a border
};

// Copies a part of a row, forwards or mirrored, eight bytes at a time. The last eight may overlap those before them.
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

// Copies a part of a row with `step` bytes from one output column to the next.
RMCLA_SHARED void scatter_run(const uint8_t* from, bool mirrored, uint8_t* to, int64_t count, int64_t step) {
  for (int64_t i = 0; i < count; ++i) to[i * step] = from[mirrored ? count - 1 - i : i];
}

// Copies parts of the rows of three channels into neighbouring bytes. The compiler turns these loops into shuffles.
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

// Copies the whole crop in the order of the output's memory. Output pixels beyond a border are not written.
template <int Bytes>
RMCLA_SHARED void crop_lines(const CroppedImage& image, uint8_t* to) {
  const int64_t plane = image.height * image.width, step = image.in_line(), count = image.end - image.begin;
  const bool mirrored = image.crop.mirrored;
  if (count == 0) return;
  to += image.begin * step;
  int64_t channel = 0, line = 0;
  for (int64_t left = image.lines(); left > 0; --left, to += image.line_size()) {
    const int64_t row = int64_t(source_row(image.crop, uint32_t(line)));
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
    if (++line == image.height) {
      line = 0;
      ++channel;
    }
  }
}

}  // namespace rmcla
