/// IEEE 754 half precision, rounded to nearest even; Swift's `Float16` is missing on Intel Macs.
enum Half {
    static func value(of bits: UInt16) -> Float {
        let sign = UInt32(bits & 0x8000) << 16
        let exponent = UInt32(bits >> 10 & 0x1F)
        let fraction = UInt32(bits & 0x3FF)
        if exponent == 0x1F { return Float(bitPattern: sign | 0x7F80_0000 | fraction << 13) }
        if exponent != 0 { return Float(bitPattern: sign | (exponent + 112) << 23 | fraction << 13) }
        return Float(fraction) * 0x1p-24 * (sign == 0 ? 1 : -1)
    }

    static func bits(of value: Float) -> UInt16 {
        let bits = value.bitPattern
        let magnitude = bits & 0x7FFF_FFFF
        let half: UInt32
        switch magnitude {
        case 0x7F80_0001...: half = 0x7E00
        case 0x477F_F000...: half = 0x7C00
        case 0x3880_0000...: half = rounded(magnitude - 112 << 23, dropping: 13)
        case 0x3300_0001...: half = rounded(magnitude & 0x7F_FFFF | 0x80_0000, dropping: 126 - magnitude >> 23)
        default: half = 0
        }
        return UInt16(bits >> 16 & 0x8000 | half)
    }

    private static func rounded(_ bits: UInt32, dropping count: UInt32) -> UInt32 {
        let kept = bits >> count
        let rest = bits & (1 << count - 1)
        let middle = UInt32(1) << (count - 1)
        return rest > middle || (rest == middle && kept & 1 == 1) ? kept + 1 : kept
    }
}

/// A query of values under 2^15 against rows of finite halves: two of them are taken out of each 32-bit word, so that nothing has to be widened.
struct HalfQuery {
    private static let lanes = 8
    /// Moves the exponent of a half, shifted into a float's place, to that of the float; right for subnormal halves too.
    private static let rebias: Float = 0x1p112

    /// The values at even places times `rebias`, and those at odd ones; then those that fill no vector.
    private let even: [SIMD8<Float>]
    private let odd: [SIMD8<Float>]
    private let rest: ArraySlice<Float>

    init(_ values: [Float]) {
        let step = 2 * HalfQuery.lanes
        let starts = stride(from: 0, through: values.count - step, by: step)
        func vectors(_ from: Int) -> [SIMD8<Float>] {
            starts.map { start in SIMD8((0..<HalfQuery.lanes).map { values[start + 2 * $0 + from] * HalfQuery.rebias }) }
        }
        even = vectors(0)
        odd = vectors(1)
        rest = values[(even.count * step)...]
    }

    /// - Parameter halves: as many as the query has values, at any address
    func dot(_ halves: UnsafeRawPointer) -> Float {
        var sums = SIMD8<Float>.zero
        for i in even.indices {
            let words = halves.loadUnaligned(fromByteOffset: 4 * HalfQuery.lanes * i, as: SIMD8<UInt32>.self)
            let first = (words & 0x7FFF) &<< 13 | (words & 0x8000) &<< 16
            let second = (words & 0x7FFF_0000) &>> 3 | words & 0x8000_0000
            sums += unsafeBitCast(first, to: SIMD8<Float>.self) * even[i] + unsafeBitCast(second, to: SIMD8<Float>.self) * odd[i]
        }
        var sum = sums.sum()
        for i in rest.indices { sum += Half.value(of: halves.loadUnaligned(fromByteOffset: 2 * i, as: UInt16.self)) * rest[i] }
        return sum
    }
}
