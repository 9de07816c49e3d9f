/// An RGB picture, 8 bits a channel, rows from the top, three bytes a pixel.
public struct Picture: Sendable {
    public let width: Int
    public let height: Int
    public let rgb: [UInt8]

    /// - Throws: `MobileCLIPError` if the bytes are not those of such a picture.
    public init(width: Int, height: Int, rgb: [UInt8]) throws {
        guard width > 0, height > 0, width <= 1 << 20, height <= 1 << 20, rgb.count == 3 * width * height else {
            throw MobileCLIPError("a picture of \(width) x \(height) has not \(rgb.count) bytes; choose another picture")
        }
        self.init(checked: width, height, rgb)
    }

    init(checked width: Int, _ height: Int, _ rgb: [UInt8]) {
        self.width = width
        self.height = height
        self.rgb = rgb
    }

    /// The picture as a viewer shows it, by its EXIF orientation (1 to 8; others need nothing).
    public func upright(orientation: Int) -> Picture {
        guard (2...8).contains(orientation) else { return self }
        let turned = orientation >= 5
        let (w, h) = turned ? (height, width) : (width, height)
        var out = [UInt8](repeating: 0, count: rgb.count)
        for y in 0..<h {
            for x in 0..<w {
                let (sx, sy): (Int, Int)
                switch orientation {
                case 2: (sx, sy) = (width - 1 - x, y)
                case 3: (sx, sy) = (width - 1 - x, height - 1 - y)
                case 4: (sx, sy) = (x, height - 1 - y)
                case 5: (sx, sy) = (y, x)
                case 6: (sx, sy) = (y, height - 1 - x)
                case 7: (sx, sy) = (width - 1 - y, height - 1 - x)
                default: (sx, sy) = (width - 1 - y, x)
                }
                let from = 3 * (sy * width + sx)
                let to = 3 * (y * w + x)
                for channel in 0..<3 { out[to + channel] = rgb[from + channel] }
            }
        }
        return Picture(checked: w, h, out)
    }
}

/// A picture as the image tower takes it. The numbers are Pillow's, whose resize the models were trained with: two passes with an
/// anti-aliased filter, 8 bits in between, weights in fixed point.
public struct Preprocessor: Sendable {
    private let info: PreprocessInfo

    public init(_ info: PreprocessInfo) {
        self.info = info
    }

    /// (R, R, 3) RGB: resized and cropped.
    public func pixels(_ picture: Picture) -> [UInt8] {
        let size = info.resolution
        if info.resize == .squash { return resized(picture, size, size, 0, 0, size, size).rgb }
        let wide = picture.width >= picture.height
        let long = size * max(picture.width, picture.height) / min(picture.width, picture.height)
        let offset = Int((Double(long - size) / 2).rounded(.toNearestOrEven)) // as torchvision does
        // only what the crop keeps is computed: rows and columns do not depend on their neighbours
        return (wide ? resized(picture, long, size, offset, 0, size, size) : resized(picture, size, long, 0, offset, size, size)).rgb
    }

    /// (3, R, R): `pixels` in [0, 1], minus mean, over standard deviation.
    public func tensor(_ picture: Picture) -> [Float] {
        let pixels = pixels(picture)
        let area = info.resolution * info.resolution
        return (0..<3 * area).map { i in
            let channel = i / area
            return (Float(pixels[3 * (i % area) + channel]) / 255 - info.mean[channel]) / info.std[channel]
        }
    }

    /// Resize to `width` x `height` and keep the part of it at `left`, `top`.
    private func resized(_ picture: Picture, _ width: Int, _ height: Int, _ left: Int, _ top: Int, _ keptWidth: Int, _ keptHeight: Int) -> Picture {
        let columns = width == picture.width ? nil : Weights(picture.width, width, left, keptWidth, info.interpolation)
        let rows = height == picture.height ? nil : Weights(picture.height, height, top, keptHeight, info.interpolation)
        let firstRow = rows?.first ?? top
        let lastRow = rows?.last ?? top + keptHeight
        // columns first, of the rows alone that the second pass needs
        var narrow = [UInt8](repeating: 0, count: 3 * keptWidth * (lastRow - firstRow))
        for y in firstRow..<lastRow {
            for x in 0..<keptWidth {
                let to = 3 * ((y - firstRow) * keptWidth + x)
                if let columns {
                    columns.apply(x, picture.rgb, 3 * y * picture.width, 3, &narrow, to)
                } else {
                    let from = 3 * (y * picture.width + left + x)
                    for channel in 0..<3 { narrow[to + channel] = picture.rgb[from + channel] }
                }
            }
        }
        guard let rows else { return Picture(checked: keptWidth, keptHeight, narrow) }
        var out = [UInt8](repeating: 0, count: 3 * keptWidth * keptHeight)
        for y in 0..<keptHeight {
            for x in 0..<keptWidth {
                rows.apply(y, narrow, 3 * (x - firstRow * keptWidth), 3 * keptWidth, &out, 3 * (y * keptWidth + x))
            }
        }
        return Picture(checked: keptWidth, keptHeight, out)
    }

    /// Of each place from `offset` on, which source values it is made of and with what weights, in fixed point.
    private struct Weights {
        private var starts: [Int] = []
        private var values: [[Int32]] = []

        /// Of the fraction; 8 bits of value and two of overshoot fit beside it.
        private static let bits: Int32 = 32 - 8 - 2
        private static let one = Double(Int32(1) << bits)
        private static let half = Int32(1) << (bits - 1)

        init(_ from: Int, _ to: Int, _ offset: Int, _ count: Int, _ interpolation: Interpolation) {
            let scale = Double(from) / Double(to)
            let stretch = max(scale, 1)
            let support = stretch * (interpolation == .bicubic ? 2 : 1)
            for i in 0..<count {
                let center = (Double(offset + i) + 0.5) * scale
                let first = max(Int(center - support + 0.5), 0)
                let last = min(Int(center + support + 0.5), from)
                let raw = (first..<last).map { Weights.filter((Double($0) - center + 0.5) / stretch, interpolation) }
                let sum = raw.reduce(0, +)
                starts.append(first)
                values.append(raw.map { Weights.fixed(sum == 0 ? $0 : $0 / sum) })
            }
        }

        var first: Int { starts.first ?? 0 }
        var last: Int { (starts.last ?? 0) + (values.last?.count ?? 0) }

        /// One pixel of three channels; `base` is where source value 0 lies, `step` how far apart they are.
        func apply(_ place: Int, _ source: [UInt8], _ base: Int, _ step: Int, _ target: inout [UInt8], _ to: Int) {
            var red = Weights.half
            var green = Weights.half
            var blue = Weights.half
            var at = base + starts[place] * step
            for weight in values[place] {
                red += Int32(source[at]) * weight
                green += Int32(source[at + 1]) * weight
                blue += Int32(source[at + 2]) * weight
                at += step
            }
            target[to] = Weights.level(red)
            target[to + 1] = Weights.level(green)
            target[to + 2] = Weights.level(blue)
        }

        private static func level(_ sum: Int32) -> UInt8 { UInt8(max(0, min(255, sum >> bits))) }

        private static func fixed(_ weight: Double) -> Int32 {
            Int32(weight < 0 ? (weight * one - 0.5).rounded(.up) : (weight * one + 0.5).rounded(.down))
        }

        private static func filter(_ distance: Double, _ interpolation: Interpolation) -> Double {
            let x = abs(distance)
            let sharp = -0.5
            switch interpolation {
            case .bilinear: return x < 1 ? 1 - x : 0
            case .bicubic:
                if x < 1 { return ((sharp + 2) * x - (sharp + 3)) * x * x + 1 }
                return x < 2 ? (((x - 5) * x + 8) * x - 4) * sharp : 0
            }
        }
    }
}
