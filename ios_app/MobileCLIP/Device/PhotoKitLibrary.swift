import Foundation
import MobileCLIPAppCore
import MobileCLIPCore
import MobileCLIPCoreML
import Photos
import UIKit

/// The phone's photo library, as much of it as the user allows.
struct PhotoKitLibrary: PhotoLibrary {
    enum Access: Sendable { case unknown, all, limited, denied }

    static var access: Access {
        switch PHPhotoLibrary.authorizationStatus(for: .readWrite) {
        case .authorized: .all
        case .limited: .limited
        case .notDetermined: .unknown
        default: .denied
        }
    }

    static func askForAccess() async -> Access {
        _ = await PHPhotoLibrary.requestAuthorization(for: .readWrite)
        return access
    }

    /// Newest first.
    func photos() async throws -> [LibraryPhoto] {
        guard [.all, .limited].contains(PhotoKitLibrary.access) else {
            throw MobileCLIPError("the app may not see your photos; allow it in Settings, Privacy & Security, Photos")
        }
        let options = PHFetchOptions()
        options.sortDescriptors = [NSSortDescriptor(key: "creationDate", ascending: false)]
        let assets = PHAsset.fetchAssets(with: .image, options: options)
        return (0..<assets.count).map { place in
            autoreleasepool { // 100,000 assets at a time are too many
                let asset = assets.object(at: place)
                return LibraryPhoto(id: asset.localIdentifier, modified: Int(asset.modificationDate?.timeIntervalSince1970 ?? 0))
            }
        }
    }

    func picture(_ photo: LibraryPhoto, shortestSide: Int) async -> Picture? {
        guard let image = await image(photo.id, shortestSide: 2 * shortestSide), let decoded = image.cgImage else { return nil }
        return autoreleasepool { try? Picture(decoded).upright(orientation: image.imageOrientation.exif) }
    }

    /// A photo, or nil where it is not on this phone; nothing is downloaded.
    func image(_ id: String, shortestSide: Int) async -> UIImage? {
        guard let asset = PHAsset.fetchAssets(withLocalIdentifiers: [id], options: nil).firstObject else { return nil }
        let shortest = max(min(asset.pixelWidth, asset.pixelHeight), 1)
        let scale = min(Double(shortestSide) / Double(shortest), 1)
        let size = CGSize(width: (Double(asset.pixelWidth) * scale).rounded(.up), height: (Double(asset.pixelHeight) * scale).rounded(.up))
        let options = PHImageRequestOptions()
        options.deliveryMode = .highQualityFormat // one answer only, as documented
        options.resizeMode = .fast
        options.isNetworkAccessAllowed = false
        let answered = Once()
        return await withCheckedContinuation { continuation in
            PHImageManager.default().requestImage(for: asset, targetSize: size, contentMode: .aspectFill, options: options) { image, about in
                guard answered.isFirst() else { return } // a second one would end the app
                continuation.resume(returning: about?[PHImageResultIsDegradedKey] as? Bool == true ? nil : image)
            }
        }
    }
}

private final class Once: @unchecked Sendable { // `isDone` is behind the lock
    private let lock = NSLock()
    private var isDone = false

    func isFirst() -> Bool {
        lock.withLock {
            defer { isDone = true }
            return !isDone
        }
    }
}

extension UIImage.Orientation {
    /// As EXIF counts, see `Picture.upright`.
    var exif: Int {
        switch self {
        case .up: 1
        case .upMirrored: 2
        case .down: 3
        case .downMirrored: 4
        case .leftMirrored: 5
        case .right: 6
        case .rightMirrored: 7
        case .left: 8
        @unknown default: 1
        }
    }
}
