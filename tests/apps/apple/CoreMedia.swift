// Declarations for type checking; see README.md.
@_exported import CoreVideo

public final class CMSampleBuffer {}
public func CMSampleBufferGetImageBuffer(_ sbuf: CMSampleBuffer) -> CVImageBuffer? { declared() }
