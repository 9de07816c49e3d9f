// Declarations for type checking; see README.md.
@_exported import Photos

extension PHPhotoLibrary {
    @MainActor public func presentLimitedLibraryPicker(from controller: UIViewController) { declared() }
}
