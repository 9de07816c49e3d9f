// Declarations for type checking; see README.md.
@_exported import FoundationApple

public final class CGColorSpace {
    public static let sRGB = "kCGColorSpaceSRGB"
    public init?(name: CFString) { declared() }
}

public enum CGImageAlphaInfo: UInt32 { case none, premultipliedLast, premultipliedFirst, last, first, noneSkipLast, noneSkipFirst, alphaOnly }

public final class CGImage {
    public var width: Int { declared() }
    public var height: Int { declared() }
}

public final class CGContext {
    public init?(
        data: UnsafeMutableRawPointer?, width: Int, height: Int, bitsPerComponent: Int, bytesPerRow: Int, space: CGColorSpace, bitmapInfo: UInt32
    ) { declared() }
    public func draw(_ image: CGImage, in rect: CGRect, byTiling: Bool = false) { declared() }
    public var data: UnsafeMutableRawPointer? { declared() }
    public var bytesPerRow: Int { declared() }
}
