// Declarations for type checking; see README.md.
public struct UTType: Sendable {
    public static let folder = UTType()
    public static let zip = UTType()
}
