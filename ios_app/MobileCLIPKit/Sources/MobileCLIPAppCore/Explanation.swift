import Foundation
import MobileCLIPCore

/// An error as one line for people.
public func explanation(of error: any Error) -> String {
    let text = (error as? MobileCLIPError)?.description ?? error.localizedDescription
    return text.split(whereSeparator: \.isNewline).joined(separator: " ")
}
