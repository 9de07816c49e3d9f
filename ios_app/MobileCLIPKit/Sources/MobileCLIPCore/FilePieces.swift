import Foundation

/// A file, piece by piece; what a piece takes is given back before the next one.
public enum FilePieces {
    private static let bytes = 1 << 20

    /// - Throws: what the file or `use` throws
    public static func read(_ file: FileHandle, use: (Data) throws -> Void) throws {
        var isMore = true
        while isMore {
            isMore = try pooled {
                guard let part = try file.read(upToCount: bytes), !part.isEmpty else { return false }
                try use(part)
                return true
            }
        }
    }
}

/// On Apple's systems Foundation's objects wait for the end of a pool: a thread of Swift's has none that ends while a loop runs.
func pooled<Result>(_ work: () throws -> Result) rethrows -> Result {
    #if canImport(ObjectiveC)
    return try autoreleasepool(invoking: work)
    #else
    return try work()
    #endif
}
