#if canImport(CoreGraphics)
import CoreGraphics
import CoreVideo
import Foundation
import ImageIO
import MobileCLIPCore

extension Picture {
    private static let undecodable = MobileCLIPError("the picture cannot be decoded; choose another one")

    /// A decoded image in sRGB; what is transparent becomes black.
    public init(_ image: CGImage) throws {
        let (width, height) = (image.width, image.height)
        guard width > 0, height > 0, width * height <= 1 << 28, let space = CGColorSpace(name: CGColorSpace.sRGB),
              let context = CGContext(
                data: nil, width: width, height: height, bitsPerComponent: 8, bytesPerRow: 4 * width, space: space, bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
        else { throw Picture.undecodable }
        context.draw(image, in: CGRect(x: 0, y: 0, width: width, height: height))
        self = try withExtendedLifetime(context) {
            guard let pixels = context.data else { throw Picture.undecodable }
            return try Picture(width: width, height: height, pixels: pixels, rowBytes: context.bytesPerRow, channels: (0, 1, 2))
        }
    }

    /// A picture's file, upright; a large one is made smaller while it is decoded.
    ///
    /// - Parameter longestSide: of the result, at most
    public init(file: Data, longestSide: Int) throws {
        let options: [CFString: Any] = [
            kCGImageSourceCreateThumbnailFromImageAlways: true, kCGImageSourceCreateThumbnailWithTransform: true, kCGImageSourceThumbnailMaxPixelSize: longestSide,
        ]
        guard let source = CGImageSourceCreateWithData(file as CFData, nil), let image = CGImageSourceCreateThumbnailAtIndex(source, 0, options as CFDictionary) else {
            throw Picture.undecodable
        }
        try self.init(image)
    }

    /// A frame of the camera, 32 bits BGRA.
    public init(_ frame: CVPixelBuffer) throws {
        guard CVPixelBufferGetPixelFormatType(frame) == kCVPixelFormatType_32BGRA, CVPixelBufferLockBaseAddress(frame, .readOnly) == kCVReturnSuccess else {
            throw Picture.undecodable
        }
        defer { CVPixelBufferUnlockBaseAddress(frame, .readOnly) }
        guard let pixels = CVPixelBufferGetBaseAddress(frame) else { throw Picture.undecodable }
        try self.init(
            width: CVPixelBufferGetWidth(frame), height: CVPixelBufferGetHeight(frame), pixels: pixels, rowBytes: CVPixelBufferGetBytesPerRow(frame), channels: (2, 1, 0))
    }

    /// Four bytes a pixel, of which three are kept.
    private init(width: Int, height: Int, pixels: UnsafeRawPointer, rowBytes: Int, channels: (Int, Int, Int)) throws {
        let rgb = [UInt8](unsafeUninitializedCapacity: 3 * width * height) { target, count in
            for y in 0..<height {
                let row = (pixels + y * rowBytes).assumingMemoryBound(to: UInt8.self)
                for x in 0..<width {
                    let to = 3 * (y * width + x)
                    target[to] = row[4 * x + channels.0]
                    target[to + 1] = row[4 * x + channels.1]
                    target[to + 2] = row[4 * x + channels.2]
                }
            }
            count = 3 * width * height
        }
        try self.init(width: width, height: height, rgb: rgb)
    }
}
#endif
