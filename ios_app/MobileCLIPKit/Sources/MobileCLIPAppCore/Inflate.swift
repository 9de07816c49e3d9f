import Foundation
import MobileCLIPCore

/// Decompression of DEFLATE (RFC 1951); Foundation has none on all systems.
enum Inflate {
    private static let window = 1 << 15
    private static let bufferBytes = 1 << 18
    private static let damaged = MobileCLIPErrors.damagedArchive

    /// Decompress, piece by piece.
    ///
    /// - Parameters:
    ///   - input: from the first block to the end of the last one
    ///   - limit: bytes that may come out
    /// - Throws: `MobileCLIPError` if it is damaged or larger, and whatever `sink` throws
    static func run(_ input: Data, limit: Int, sink: (Data) throws -> Void) throws {
        try input.withUnsafeBytes { bytes in
            var reader = BitReader(bytes: bytes)
            var output = Output(limit: limit)
            var isLast = false
            repeat {
                isLast = try reader.take(1) == 1
                switch try reader.take(2) {
                case 0: try stored(&reader, &output, sink)
                case 1: try compressed(&reader, fixedLiterals, fixedDistances, &output, sink)
                case 2:
                    let (literals, distances) = try tables(&reader)
                    try compressed(&reader, literals, distances, &output, sink)
                default: throw damaged
                }
            } while !isLast
            try output.flush(sink)
        }
    }

    private static func stored(_ reader: inout BitReader, _ output: inout Output, _ sink: (Data) throws -> Void) throws {
        reader.toByte()
        let length = try reader.take(16)
        guard try reader.take(16) == length ^ 0xFFFF else { throw damaged }
        for _ in 0..<length { try output.append(UInt8(try reader.take(8)), sink) }
    }

    private static func compressed(
        _ reader: inout BitReader, _ literals: Huffman, _ distances: Huffman, _ output: inout Output, _ sink: (Data) throws -> Void
    ) throws {
        while true {
            let symbol = try reader.symbol(literals)
            if symbol < 256 {
                try output.append(UInt8(symbol), sink)
                continue
            }
            if symbol == 256 { return }
            guard symbol - 257 < lengthBases.count else { throw damaged }
            let length = lengthBases[symbol - 257] + (try reader.take(lengthBits[symbol - 257]))
            let place = try reader.symbol(distances)
            guard place < distanceBases.count else { throw damaged }
            try output.repeated(from: distanceBases[place] + (try reader.take(distanceBits[place])), count: length, sink)
        }
    }

    /// The code lengths of a block, which are compressed themselves (section 3.2.7).
    private static func tables(_ reader: inout BitReader) throws -> (Huffman, Huffman) {
        let literals = try reader.take(5) + 257
        let distances = try reader.take(5) + 1
        let count = try reader.take(4) + 4
        var lengths = [Int](repeating: 0, count: lengthOrder.count)
        for i in 0..<count { lengths[lengthOrder[i]] = try reader.take(3) }
        let code = try Huffman(lengths)
        var all: [Int] = []
        while all.count < literals + distances {
            let symbol = try reader.symbol(code)
            switch symbol {
            case 0..<16: all.append(symbol)
            case 16:
                guard let last = all.last else { throw damaged }
                all += [Int](repeating: last, count: 3 + (try reader.take(2)))
            case 17: all += [Int](repeating: 0, count: 3 + (try reader.take(3)))
            default: all += [Int](repeating: 0, count: 11 + (try reader.take(7)))
            }
        }
        guard all.count == literals + distances else { throw damaged }
        return (try Huffman(Array(all[..<literals])), try Huffman(Array(all[literals...])))
    }

    private static let lengthOrder = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15]
    private static let lengthBits = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0]
    private static let lengthBases = bases(lengthBits.dropLast(), from: 3) + [258]
    private static let distanceBits = (0..<30).map { max($0 / 2 - 1, 0) }
    private static let distanceBases = bases(distanceBits[...], from: 1)
    private static let fixedLiterals = Huffman(
        valid: (0..<288).map { $0 < 144 ? 8 : $0 < 256 ? 9 : $0 < 280 ? 7 : 8 })
    private static let fixedDistances = Huffman(valid: [Int](repeating: 5, count: 30))

    private static func bases(_ bits: ArraySlice<Int>, from first: Int) -> [Int] {
        var next = first
        return bits.map { count in
            defer { next += 1 << count }
            return next
        }
    }

    /// Bits from the lowest one of each byte on.
    private struct BitReader {
        let bytes: UnsafeRawBufferPointer
        private var at = 0
        private var bits: UInt64 = 0
        private var count = 0

        init(bytes: UnsafeRawBufferPointer) {
            self.bytes = bytes
        }

        private mutating func fill() {
            while count <= 56, at < bytes.count {
                bits |= UInt64(bytes[at]) << UInt64(count)
                at += 1
                count += 8
            }
        }

        mutating func take(_ wanted: Int) throws -> Int {
            if count < wanted { fill() }
            guard count >= wanted else { throw damaged }
            defer {
                bits >>= UInt64(wanted)
                count -= wanted
            }
            return Int(bits & (1 << UInt64(wanted) - 1))
        }

        mutating func toByte() {
            bits >>= UInt64(count % 8)
            count -= count % 8
        }

        mutating func symbol(_ code: Huffman) throws -> Int {
            if count < 15 { fill() }
            let found = code.table[Int(bits & code.mask)]
            let length = Int(found >> 16)
            guard length > 0, length <= count else { throw damaged }
            bits >>= UInt64(length)
            count -= length
            return Int(found & 0xFFFF)
        }
    }

    /// A canonical code as a table: of what the next bits may be, the length of the code and its symbol; 0 where there is none.
    private struct Huffman: Sendable {
        let table: [UInt32]
        let mask: UInt64

        init(_ lengths: [Int]) throws {
            let used = lengths.filter { $0 > 0 }
            guard used.reduce(0, { $0 + (1 << 15) >> $1 }) <= 1 << 15 else { throw damaged }
            self.init(valid: lengths)
        }

        init(valid lengths: [Int]) {
            let longest = max(lengths.max() ?? 0, 1)
            var next = [Int](repeating: 0, count: longest + 2)
            for length in lengths where length > 0 { next[length + 1] += 1 }
            for length in 1...longest { next[length + 1] = (next[length] + next[length + 1]) << 1 }
            var table = [UInt32](repeating: 0, count: 1 << longest)
            for (symbol, length) in lengths.enumerated() where length > 0 {
                var place = 0
                for bit in 0..<length where next[length] >> bit & 1 == 1 { place |= 1 << (length - 1 - bit) }
                next[length] += 1
                for i in stride(from: place, to: table.count, by: 1 << length) { table[i] = UInt32(length) << 16 | UInt32(symbol) }
            }
            self.table = table
            mask = UInt64(table.count - 1)
        }
    }

    /// What came out and is not passed on yet, behind the window that later bytes may refer to.
    private struct Output {
        private var buffer: [UInt8] = []
        private var passed = 0
        private var room: Int

        init(limit: Int) {
            room = limit
            buffer.reserveCapacity(bufferBytes)
        }

        mutating func append(_ byte: UInt8, _ sink: (Data) throws -> Void) throws {
            guard room > 0 else { throw damaged }
            room -= 1
            buffer.append(byte)
            if buffer.count == bufferBytes { try flush(sink) }
        }

        mutating func repeated(from distance: Int, count: Int, _ sink: (Data) throws -> Void) throws {
            guard distance <= buffer.count else { throw damaged }
            for _ in 0..<count { try append(buffer[buffer.count - distance], sink) }
        }

        mutating func flush(_ sink: (Data) throws -> Void) throws {
            try sink(Data(buffer[passed...]))
            buffer.removeFirst(max(buffer.count - window, 0))
            passed = buffer.count
        }
    }
}
