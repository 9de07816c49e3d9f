import Foundation

#if canImport(CryptoKit)
import CryptoKit
#endif

/// SHA-256 as 64 hexadecimal digits in lower case.
public enum Hash {
    public static func sha256(_ data: Data) -> String {
        #if canImport(CryptoKit)
        return hex(Data(SHA256.hash(data: data)))
        #else
        var digest = PortableSHA256()
        digest.update(data)
        return hex(digest.finish())
        #endif
    }

    /// Of a file, without holding it in memory.
    public static func sha256(of url: URL) throws -> String {
        let file = try FileHandle(forReadingFrom: url)
        defer { try? file.close() }
        #if canImport(CryptoKit)
        var digest = SHA256()
        try FilePieces.read(file) { digest.update(data: $0) }
        return hex(Data(digest.finalize()))
        #else
        var digest = PortableSHA256()
        try FilePieces.read(file) { digest.update($0) }
        return hex(digest.finish())
        #endif
    }

    private static func hex(_ data: Data) -> String {
        data.map { byte in (byte < 16 ? "0" : "") + String(byte, radix: 16) }.joined()
    }
}

/// FIPS 180-4, for systems without CryptoKit.
struct PortableSHA256 {
    private var state: [UInt32] = [
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    ]
    private var pending: [UInt8] = []
    private var count: UInt64 = 0

    mutating func update(_ data: Data) {
        count += UInt64(data.count)
        pending += data
        var at = 0
        while pending.count - at >= 64 {
            compress(pending[at..<at + 64])
            at += 64
        }
        pending.removeFirst(at)
    }

    mutating func finish() -> Data {
        let bits = count * 8
        pending.append(0x80)
        while pending.count % 64 != 56 { pending.append(0) }
        for shift in stride(from: 56, through: 0, by: -8) { pending.append(UInt8(truncatingIfNeeded: bits >> UInt64(shift))) }
        for at in stride(from: 0, to: pending.count, by: 64) { compress(pending[at..<at + 64]) }
        return Data(state.flatMap { word in stride(from: 24, through: 0, by: -8).map { UInt8(truncatingIfNeeded: word >> UInt32($0)) } })
    }

    private mutating func compress(_ block: ArraySlice<UInt8>) {
        let bytes = Array(block)
        var w = (0..<16).map { i in (0..<4).reduce(UInt32(0)) { $0 << 8 | UInt32(bytes[4 * i + $1]) } }
        for i in 16..<64 {
            let a = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ (w[i - 15] >> 3)
            let b = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ (w[i - 2] >> 10)
            w.append(w[i - 16] &+ a &+ w[i - 7] &+ b)
        }
        var v = state
        for i in 0..<64 {
            let s1 = rotated(v[4], 6) ^ rotated(v[4], 11) ^ rotated(v[4], 25)
            let choice = (v[4] & v[5]) ^ (~v[4] & v[6])
            let first = v[7] &+ s1 &+ choice &+ PortableSHA256.constants[i] &+ w[i]
            let s0 = rotated(v[0], 2) ^ rotated(v[0], 13) ^ rotated(v[0], 22)
            let majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2])
            v = [first &+ s0 &+ majority, v[0], v[1], v[2], v[3] &+ first, v[4], v[5], v[6]]
        }
        state = zip(state, v).map { $0 &+ $1 }
    }

    private func rotated(_ value: UInt32, _ by: UInt32) -> UInt32 { value >> by | value << (32 - by) }

    /// The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
    private static let constants: [UInt32] = [
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
        0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
        0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
        0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
        0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
        0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
    ]
}
