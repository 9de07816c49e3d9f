import Foundation

/// What the camera shall tell apart, as a user writes it: a label a line; lines with `{}` are templates for all labels.
public struct PromptList: Equatable, Sendable {
    public static let maxLabels = 200
    public static let maxCharacters = 200
    public static let example = "a photo of a {}\ncup\nkeyboard\nplant\nperson\ndog\ncat\nbook\nempty room"

    public let labels: [String]
    public let templates: [String]
    /// What was left out and why, for the user; empty if nothing.
    public let remark: String

    public init(parsing text: String) {
        var labels: [String] = []
        var templates: [String] = []
        var long = 0
        for line in text.split(whereSeparator: \.isNewline) {
            let plain = line.trimmingCharacters(in: .whitespaces)
            if plain.isEmpty { continue }
            if plain.count > PromptList.maxCharacters {
                long += 1
            } else if plain.contains("{}") {
                if !templates.contains(plain) { templates.append(plain) }
            } else if !labels.contains(plain) {
                labels.append(plain)
            }
        }
        var remarks: [String] = []
        if long > 0 { remarks.append("\(long) longer than \(PromptList.maxCharacters) characters left out") }
        if labels.count > PromptList.maxLabels { remarks.append("only the first \(PromptList.maxLabels) labels are used") }
        self.labels = Array(labels.prefix(PromptList.maxLabels))
        self.templates = templates.isEmpty ? ["{}"] : templates
        remark = remarks.joined(separator: "; ")
    }
}
