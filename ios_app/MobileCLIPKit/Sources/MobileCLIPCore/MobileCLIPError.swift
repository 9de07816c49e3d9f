/// What went wrong and what to do about it, in one line for a person.
public struct MobileCLIPError: Error, Equatable, CustomStringConvertible, Sendable {
    public let description: String

    public init(_ description: String) {
        self.description = description
    }
}
