import Foundation

/// A safetensors file, mapped into memory; every offset was checked.
public struct SafeTensors: Sendable {
    public struct Tensor: Sendable {
        public let dtype: String
        public let shape: [Int]
        /// Little-endian values.
        public let data: Data

        /// The values of an F32 tensor.
        public func floats() throws -> [Float] {
            try words("F32").map { Float(bitPattern: $0) }
        }

        /// The values of an I32 tensor.
        public func ints() throws -> [Int32] {
            try words("I32").map { Int32(bitPattern: $0) }
        }

        /// The values of a U8 tensor.
        public func bytes() throws -> [UInt8] {
            guard dtype == "U8" else { throw MobileCLIPError("a tensor holds \(dtype), not U8; export the bundle again") }
            return [UInt8](data)
        }

        private func words(_ wanted: String) throws -> [UInt32] {
            guard dtype == wanted else { throw MobileCLIPError("a tensor holds \(dtype), not \(wanted); export the bundle again") }
            return data.withUnsafeBytes { bytes in
                stride(from: 0, to: bytes.count, by: 4).map { UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: $0, as: UInt32.self)) }
            }
        }
    }

    public let tensors: [String: Tensor]
    public let metadata: [String: String]

    private static let maxHeaderBytes = 16 << 20
    private static let widths = ["F32": 4, "I32": 4, "F16": 2, "U8": 1, "I64": 8]

    public init(contentsOf url: URL) throws {
        let whole: Data
        do {
            whole = try Data(contentsOf: url, options: .mappedIfSafe)
        } catch {
            throw MobileCLIPError("\(url.lastPathComponent) cannot be read (\(error.localizedDescription)); copy the bundle again")
        }
        func damaged(_ reason: String) -> MobileCLIPError {
            MobileCLIPError("\(url.lastPathComponent) is damaged (\(reason)); copy the bundle again")
        }
        guard whole.count >= 8 else { throw damaged("it is too short") }
        let length = whole.prefix(8).reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        guard length >= 2, length <= UInt64(min(SafeTensors.maxHeaderBytes, whole.count - 8)) else { throw damaged("a header of \(length) bytes") }
        let body = whole.dropFirst(8 + Int(length))
        guard case .object(let header) = try JSON(parsing: Data(whole.dropFirst(8).prefix(Int(length)))) else { throw damaged("no header") }
        var tensors: [String: Tensor] = [:]
        var metadata: [String: String] = [:]
        for (name, about) in header {
            if name == "__metadata__" {
                guard case .object(let entries) = about else { throw damaged("its metadata") }
                for (key, value) in entries {
                    if case .string(let text) = value { metadata[key] = text }
                }
                continue
            }
            guard case .string(let dtype)? = about["dtype"], let width = SafeTensors.widths[dtype], let shape = SafeTensors.numbers(about["shape"]),
                  let offsets = SafeTensors.numbers(about["data_offsets"]), offsets.count == 2, offsets[0] <= offsets[1], offsets[1] <= body.count
            else { throw damaged("the place of \(name)") }
            var bytes = width
            for side in shape {
                let (product, overflow) = bytes.multipliedReportingOverflow(by: side)
                guard !overflow else { throw damaged("the shape of \(name)") }
                bytes = product
            }
            guard bytes == offsets[1] - offsets[0] else { throw damaged("the size of \(name)") }
            tensors[name] = Tensor(dtype: dtype, shape: shape, data: body.dropFirst(offsets[0]).prefix(bytes))
        }
        self.tensors = tensors
        self.metadata = metadata
    }

    /// - Throws: `MobileCLIPError` if there is none of that name.
    public func tensor(_ name: String) throws -> Tensor {
        guard let found = tensors[name] else { throw MobileCLIPError("the file holds no \(name); export the bundle again") }
        return found
    }

    /// Whole numbers that are not negative.
    private static func numbers(_ value: JSON?) -> [Int]? {
        guard case .array(let items)? = value else { return nil }
        var found: [Int] = []
        for item in items {
            guard case .number(let text) = item, let number = Int(text), number >= 0 else { return nil }
            found.append(number)
        }
        return found
    }
}
