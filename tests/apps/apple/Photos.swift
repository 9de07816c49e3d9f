// Declarations for type checking; see README.md.
@_exported import UIKit

public enum PHAuthorizationStatus: Int, Sendable { case notDetermined, restricted, denied, authorized, limited }
public enum PHAccessLevel: Int, Sendable { case addOnly, readWrite }
open class PHPhotoLibrary: NSObject {
    open class func shared() -> PHPhotoLibrary { declared() }
    open class func authorizationStatus(for accessLevel: PHAccessLevel) -> PHAuthorizationStatus { declared() }
    open class func requestAuthorization(for accessLevel: PHAccessLevel) async -> PHAuthorizationStatus { declared() }
}
open class PHFetchOptions: NSObject { open var sortDescriptors: [NSSortDescriptor]? { get { declared() } set { declared() } } }
open class PHFetchResult<ObjectType: AnyObject>: NSObject {
    open var count: Int { declared() }
    open func object(at index: Int) -> ObjectType { declared() }
    open var firstObject: ObjectType? { declared() }
}
public enum PHAssetMediaType: Int, Sendable { case unknown, image, video, audio }
open class PHAsset: NSObject {
    open var localIdentifier: String { declared() }
    open var modificationDate: Date? { declared() }
    open var pixelWidth: Int { declared() }
    open var pixelHeight: Int { declared() }
    open class func fetchAssets(with mediaType: PHAssetMediaType, options: PHFetchOptions?) -> PHFetchResult<PHAsset> { declared() }
    open class func fetchAssets(withLocalIdentifiers identifiers: [String], options: PHFetchOptions?) -> PHFetchResult<PHAsset> { declared() }
}
public enum PHImageContentMode: Int, Sendable { case aspectFit, aspectFill }
public enum PHImageRequestOptionsDeliveryMode: Int, Sendable { case opportunistic, highQualityFormat, fastFormat }
public enum PHImageRequestOptionsResizeMode: Int, Sendable { case none, fast, exact }
open class PHImageRequestOptions: NSObject {
    open var deliveryMode: PHImageRequestOptionsDeliveryMode { get { declared() } set { declared() } }
    open var resizeMode: PHImageRequestOptionsResizeMode { get { declared() } set { declared() } }
    open var isNetworkAccessAllowed: Bool { get { declared() } set { declared() } }
}
public typealias PHImageRequestID = Int32
public let PHImageResultIsDegradedKey = ""
open class PHImageManager: NSObject {
    open class func `default`() -> PHImageManager { declared() }
    @discardableResult
    open func requestImage(
        for asset: PHAsset, targetSize: CGSize, contentMode: PHImageContentMode, options: PHImageRequestOptions?,
        resultHandler: @escaping (UIImage?, [AnyHashable: Any]?) -> Void
    ) -> PHImageRequestID { declared() }
}
