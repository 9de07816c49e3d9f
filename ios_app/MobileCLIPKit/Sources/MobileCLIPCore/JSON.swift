import Foundation

/// A JSON document whose numbers stay as they are written: the manifest's hash is over them.
public enum JSON: Equatable, Sendable {
    case null
    case bool(Bool)
    case number(String)
    case string(String)
    case array([JSON])
    case object([String: JSON])

    private static let maxDepth = 100

    /// Parse UTF-8 text.
    ///
    /// - Throws: `MobileCLIPError` if it is no JSON, is nested too deeply, or an object has a key twice.
    public init(parsing data: Data) throws {
        guard String(data: data, encoding: .utf8) != nil else { throw MobileCLIPError("the file is not UTF-8 text; copy it again") }
        var parser = Parser(bytes: [UInt8](data))
        self = try parser.document()
    }

    public subscript(key: String) -> JSON? {
        if case .object(let members) = self { return members[key] }
        return nil
    }

    /// Sorted keys, no spaces, numbers as they stand.
    public var canonical: String {
        switch self {
        case .null: return "null"
        case .bool(let value): return value ? "true" : "false"
        case .number(let text): return text
        case .string(let text): return JSON.quoted(text)
        case .array(let items): return "[" + items.map(\.canonical).joined(separator: ",") + "]"
        case .object(let members):
            let keys = members.keys.sorted { Array($0.unicodeScalars).lexicographicallyPrecedes(Array($1.unicodeScalars)) }
            return "{" + keys.map { JSON.quoted($0) + ":" + (members[$0]?.canonical ?? "null") }.joined(separator: ",") + "}"
        }
    }

    private static func quoted(_ text: String) -> String {
        var result = "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"", "\\": result += "\\"; result.unicodeScalars.append(scalar)
            case "\n": result += "\\n"
            case "\r": result += "\\r"
            case "\t": result += "\\t"
            case "\u{8}": result += "\\b"
            case "\u{C}": result += "\\f"
            case "\u{0}"..."\u{1F}":
                let digits = String(scalar.value, radix: 16)
                result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result + "\""
    }

    private struct Parser {
        let bytes: [UInt8]
        var at = 0

        mutating func document() throws -> JSON {
            let value = try self.value(depth: 0)
            skipSpace()
            guard at == bytes.count else { throw error() }
            return value
        }

        private func error() -> MobileCLIPError {
            MobileCLIPError("the file is no JSON (at byte \(at)); copy it again")
        }

        private mutating func skipSpace() {
            while at < bytes.count, [0x20, 0x09, 0x0A, 0x0D].contains(bytes[at]) { at += 1 }
        }

        private mutating func take(_ byte: UInt8) -> Bool {
            skipSpace()
            guard at < bytes.count, bytes[at] == byte else { return false }
            at += 1
            return true
        }

        private mutating func take(word: String) -> Bool {
            let wanted = Array(word.utf8)
            guard at + wanted.count <= bytes.count, Array(bytes[at..<at + wanted.count]) == wanted else { return false }
            at += wanted.count
            return true
        }

        private mutating func value(depth: Int) throws -> JSON {
            guard depth < JSON.maxDepth else { throw error() }
            skipSpace()
            guard at < bytes.count else { throw error() }
            switch bytes[at] {
            case UInt8(ascii: "{"): return try object(depth: depth)
            case UInt8(ascii: "["): return try array(depth: depth)
            case UInt8(ascii: "\""): return .string(try string())
            case UInt8(ascii: "t") where take(word: "true"): return .bool(true)
            case UInt8(ascii: "f") where take(word: "false"): return .bool(false)
            case UInt8(ascii: "n") where take(word: "null"): return .null
            default: return .number(try number())
            }
        }

        private mutating func object(depth: Int) throws -> JSON {
            var members: [String: JSON] = [:]
            _ = take(UInt8(ascii: "{"))
            if take(UInt8(ascii: "}")) { return .object(members) }
            repeat {
                skipSpace()
                guard at < bytes.count, bytes[at] == UInt8(ascii: "\"") else { throw error() }
                let key = try string()
                guard members[key] == nil, take(UInt8(ascii: ":")) else { throw error() }
                members[key] = try value(depth: depth + 1)
            } while take(UInt8(ascii: ","))
            guard take(UInt8(ascii: "}")) else { throw error() }
            return .object(members)
        }

        private mutating func array(depth: Int) throws -> JSON {
            var items: [JSON] = []
            _ = take(UInt8(ascii: "["))
            if take(UInt8(ascii: "]")) { return .array(items) }
            repeat { items.append(try value(depth: depth + 1)) } while take(UInt8(ascii: ","))
            guard take(UInt8(ascii: "]")) else { throw error() }
            return .array(items)
        }

        private mutating func string() throws -> String {
            at += 1
            var result = String.UnicodeScalarView()
            var plain: [UInt8] = []
            func flush() {
                result.append(contentsOf: String(decoding: plain, as: UTF8.self).unicodeScalars)
                plain.removeAll(keepingCapacity: true)
            }
            while at < bytes.count {
                let byte = bytes[at]
                at += 1
                switch byte {
                case UInt8(ascii: "\""):
                    flush()
                    return String(result)
                case UInt8(ascii: "\\"):
                    flush()
                    result.append(try escaped())
                case 0..<0x20: throw error()
                default: plain.append(byte)
                }
            }
            throw error()
        }

        private mutating func escaped() throws -> Unicode.Scalar {
            guard at < bytes.count else { throw error() }
            at += 1
            switch bytes[at - 1] {
            case UInt8(ascii: "\""): return "\""
            case UInt8(ascii: "\\"): return "\\"
            case UInt8(ascii: "/"): return "/"
            case UInt8(ascii: "b"): return "\u{8}"
            case UInt8(ascii: "f"): return "\u{C}"
            case UInt8(ascii: "n"): return "\n"
            case UInt8(ascii: "r"): return "\r"
            case UInt8(ascii: "t"): return "\t"
            case UInt8(ascii: "u"):
                let first = try hexadecimal()
                if (0xD800..<0xDC00).contains(first) {
                    guard take(word: "\\u") else { throw error() }
                    let second = try hexadecimal()
                    guard (0xDC00..<0xE000).contains(second), let scalar = Unicode.Scalar(0x10000 + (first - 0xD800) << 10 + (second - 0xDC00)) else {
                        throw error()
                    }
                    return scalar
                }
                guard let scalar = Unicode.Scalar(first) else { throw error() }
                return scalar
            default: throw error()
            }
        }

        private mutating func hexadecimal() throws -> UInt32 {
            guard at + 4 <= bytes.count else { throw error() }
            var value: UInt32 = 0
            for byte in bytes[at..<at + 4] {
                guard let digit = Character(Unicode.Scalar(byte)).hexDigitValue else { throw error() }
                value = value << 4 | UInt32(digit)
            }
            at += 4
            return value
        }

        private mutating func number() throws -> String {
            let start = at
            func digits() -> Int {
                let first = at
                while at < bytes.count, (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(bytes[at]) { at += 1 }
                return at - first
            }
            if at < bytes.count, bytes[at] == UInt8(ascii: "-") { at += 1 }
            let whole = at
            let count = digits()
            guard count == 1 || (count > 1 && bytes[whole] != UInt8(ascii: "0")) else { throw error() }
            if at < bytes.count, bytes[at] == UInt8(ascii: ".") {
                at += 1
                guard digits() > 0 else { throw error() }
            }
            if at < bytes.count, bytes[at] == UInt8(ascii: "e") || bytes[at] == UInt8(ascii: "E") {
                at += 1
                if at < bytes.count, bytes[at] == UInt8(ascii: "+") || bytes[at] == UInt8(ascii: "-") { at += 1 }
                guard digits() > 0 else { throw error() }
            }
            return String(decoding: bytes[start..<at], as: UTF8.self)
        }
    }
}
