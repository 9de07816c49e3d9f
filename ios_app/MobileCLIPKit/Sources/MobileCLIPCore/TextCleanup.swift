import Foundation

/// The clean-up of captions that CLIP was trained with: ftfy's repairs of single characters, HTML unescaped twice, white space collapsed.
///
/// Text that was decoded with a wrong encoding is left as it is; nobody types it.
enum TextCleanup {
    typealias Scalars = [Unicode.Scalar]

    static func clean(_ text: String) -> Scalars {
        let unescaped = unescape(unescape(repair(Scalars(text.unicodeScalars))))
        return Scalars(unescaped.split(whereSeparator: isSpace).joined(separator: [" "]))
    }

    /// Each line by itself, as ftfy does: a `<` in one of them stops the unescaping there and in all that follow.
    private static func repair(_ text: Scalars) -> Scalars {
        var unescaping = true
        var result = Scalars()
        var start = 0
        while start < text.count {
            let end = text[start...].firstIndex(of: "\n").map { $0 + 1 } ?? text.count
            let line = Scalars(text[start..<end])
            if line.contains("<") { unescaping = false }
            result += repairLine(line, unescaping: unescaping)
            start = end
        }
        return result
    }

    private static func repairLine(_ line: Scalars, unescaping: Bool) -> Scalars {
        var text = line
        while true {
            let before = text
            if unescaping { text = replacingReferences(in: text, strict: true) }
            text = withoutTerminalEscapes(withPlainLineBreaks(replacingCharacters(in: text)))
            text.removeAll(where: isControl)
            text = Scalars(string(text).precomposedStringWithCanonicalMapping.unicodeScalars)
            if text == before { return text }
        }
    }

    private static func replacingCharacters(in text: Scalars) -> Scalars {
        var result = Scalars()
        result.reserveCapacity(text.count)
        for scalar in text {
            if let ligature = ligatures[scalar] {
                result += ligature.unicodeScalars.map(uncurled)
            } else {
                switch scalar.value {
                case 0x80...0x9F: result.append(windows1252[Int(scalar.value) - 0x80])
                case 0x3000: result.append(" ")
                case 0xFF01...0xFFEF: result += String(scalar).precomposedStringWithCompatibilityMapping.unicodeScalars
                default: result.append(uncurled(scalar))
                }
            }
        }
        return result
    }

    private static func uncurled(_ scalar: Unicode.Scalar) -> Unicode.Scalar {
        switch scalar {
        case "\u{2BC}", "\u{2018}"..."\u{201B}": return "'"
        case "\u{201C}"..."\u{201F}": return "\""
        default: return scalar
        }
    }

    private static func withPlainLineBreaks(_ text: Scalars) -> Scalars {
        var result = Scalars()
        for (i, scalar) in text.enumerated() {
            switch scalar {
            case "\r": if i + 1 == text.count || text[i + 1] != "\n" { result.append("\n") }
            case "\u{2028}", "\u{2029}", "\u{85}": result.append("\n")
            default: result.append(scalar)
            }
        }
        return result
    }

    private static func withoutTerminalEscapes(_ text: Scalars) -> Scalars {
        var result = Scalars()
        var i = 0
        while i < text.count {
            if text[i] == "\u{1B}", i + 1 < text.count, text[i + 1] == "[" {
                var end = i + 2
                while end < text.count, isDigit(text[end]) || text[end] == ";" { end += 1 }
                if end < text.count, isLetterOfASCII(text[end]) {
                    i = end + 1
                    continue
                }
            }
            result.append(text[i])
            i += 1
        }
        return result
    }

    private static func isControl(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.value {
        case 0x00...0x08, 0x0B, 0x0E...0x1F, 0x7F, 0x206A...0x206F, 0xFEFF, 0xFFF9...0xFFFC: return true
        default: return false
        }
    }

    // MARK: HTML

    /// HTML5's character references, as a browser reads them.
    static func unescape(_ text: Scalars) -> Scalars {
        text.contains("&") ? replacingReferences(in: text, strict: false) : text
    }

    private static func replacingReferences(in text: Scalars, strict: Bool) -> Scalars {
        var result = Scalars()
        var i = 0
        while i < text.count {
            if text[i] == "&" {
                let end = strict ? endOfStrictReference(text, i + 1) : endOfReference(text, i + 1)
                if let end {
                    let name = Scalars(text[i + 1..<end])
                    result += strict ? strictReference(name) : reference(name)
                    i = end
                    continue
                }
            }
            result.append(text[i])
            i += 1
        }
        return result
    }

    /// `&`, then `#` perhaps, 1 to 24 letters and digits, and a semicolon.
    private static func endOfStrictReference(_ text: Scalars, _ start: Int) -> Int? {
        var at = start
        if at < text.count, text[at] == "#" { at += 1 }
        let first = at
        while at < text.count, at - first < 24, isDigit(text[at]) || isLetterOfASCII(text[at]) { at += 1 }
        return at > first && at < text.count && text[at] == ";" ? at + 1 : nil
    }

    /// A number, or up to 32 signs of a name; with a semicolon if there is one.
    private static func endOfReference(_ text: Scalars, _ start: Int) -> Int? {
        var at = start
        if at < text.count, text[at] == "#" {
            at += 1
            let hexadecimal = at < text.count && (text[at] == "x" || text[at] == "X")
            if hexadecimal { at += 1 }
            let first = at
            while at < text.count, hexadecimal ? isHexadecimal(text[at]) : isDigit(text[at]) { at += 1 }
            guard at > first else { return nil }
        } else {
            while at < text.count, at - start < 32, !"\t\n\u{C} <&#;".unicodeScalars.contains(text[at]) { at += 1 }
            guard at > start else { return nil }
        }
        return at < text.count && text[at] == ";" ? at + 1 : at
    }

    /// ftfy's own unescaping: names in capitals as well.
    private static func strictReference(_ name: Scalars) -> Scalars {
        let text = string(name)
        if let found = entities[text] { return Scalars(found.unicodeScalars) }
        if name.first == "#" {
            let found = unescape(["&"] + name)
            return found.contains(";") ? ["&"] + name : found
        }
        // a name in capitals is that of the capital letter, where no other name is written so
        if text == text.uppercased(), let lower = entities[text.lowercased()], reference(name) == ["&"] + name {
            return Scalars(lower.uppercased().unicodeScalars)
        }
        return ["&"] + name
    }

    private static func reference(_ name: Scalars) -> Scalars {
        if name.first == "#" { return numbered(name.dropFirst()) }
        if let found = entities[string(name)] { return Scalars(found.unicodeScalars) }
        for length in stride(from: name.count - 1, through: 2, by: -1) {
            if let found = entities[string(Scalars(name[..<length]))] { return Scalars(found.unicodeScalars) + name[length...] }
        }
        return ["&"] + name
    }

    private static func numbered(_ digits: ArraySlice<Unicode.Scalar>) -> Scalars {
        let hexadecimal = digits.first == "x" || digits.first == "X"
        let significant = digits.filter { hexadecimal ? isHexadecimal($0) : isDigit($0) }.drop { $0 == "0" }
        // a longer one is beyond Unicode
        let code = significant.count > 8 ? UInt32.max : UInt32(string(Scalars(significant)), radix: hexadecimal ? 16 : 10) ?? 0
        switch code {
        case 0x0D: return ["\r"]
        case 0x80...0x9F: return [windows1252[Int(code) - 0x80]]
        case 0x01...0x08, 0x0B, 0x0E...0x1F, 0x7F, 0xFDD0...0xFDEF: return []
        default:
            guard code != 0, let scalar = Unicode.Scalar(code) else { return ["\u{FFFD}"] }
            return code & 0xFFFE == 0xFFFE ? [] : [scalar]
        }
    }

    private static let entities: [String: String] = {
        guard let url = Bundle.module.url(forResource: "entities", withExtension: "tsv"), let text = try? String(contentsOf: url, encoding: .utf8) else {
            return [:]
        }
        var found: [String: String] = [:]
        for line in text.split(separator: "\n") {
            let parts = line.split(separator: "\t")
            guard parts.count == 2 else { continue }
            let scalars = parts[1].split(separator: " ").compactMap { UInt32($0, radix: 16) }.compactMap(Unicode.Scalar.init)
            found[String(parts[0])] = string(scalars)
        }
        return found
    }()

    // MARK: Characters

    /// White space as Python and CLIP's pattern have it.
    static func isSpace(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.value {
        case 0x09...0x0D, 0x1C...0x20, 0x85, 0xA0, 0x1680, 0x2000...0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000: return true
        default: return false
        }
    }

    static func string(_ scalars: Scalars) -> String {
        var view = String.UnicodeScalarView()
        view.append(contentsOf: scalars)
        return String(view)
    }

    private static func isDigit(_ scalar: Unicode.Scalar) -> Bool { ("0"..."9").contains(scalar) }
    private static func isLetterOfASCII(_ scalar: Unicode.Scalar) -> Bool { ("a"..."z").contains(scalar) || ("A"..."Z").contains(scalar) }
    private static func isHexadecimal(_ scalar: Unicode.Scalar) -> Bool {
        isDigit(scalar) || ("a"..."f").contains(scalar) || ("A"..."F").contains(scalar)
    }

    /// Windows-1252 from 0x80 on; the code itself where it has no character.
    private static let windows1252: Scalars = [
        "\u{20AC}", "\u{81}", "\u{201A}", "\u{192}", "\u{201E}", "\u{2026}", "\u{2020}", "\u{2021}", "\u{2C6}", "\u{2030}", "\u{160}",
        "\u{2039}", "\u{152}", "\u{8D}", "\u{17D}", "\u{8F}", "\u{90}", "\u{2018}", "\u{2019}", "\u{201C}", "\u{201D}", "\u{2022}",
        "\u{2013}", "\u{2014}", "\u{2DC}", "\u{2122}", "\u{161}", "\u{203A}", "\u{153}", "\u{9D}", "\u{17E}", "\u{178}",
    ]

    private static let ligatures: [Unicode.Scalar: String] = [
        "\u{132}": "IJ", "\u{133}": "ij", "\u{149}": "\u{2BC}n", "\u{1F1}": "DZ", "\u{1F2}": "Dz", "\u{1F3}": "dz", "\u{1C4}": "D\u{17D}",
        "\u{1C5}": "D\u{17E}", "\u{1C6}": "d\u{17E}", "\u{1C7}": "LJ", "\u{1C8}": "Lj", "\u{1C9}": "lj", "\u{1CA}": "NJ", "\u{1CB}": "Nj",
        "\u{1CC}": "nj", "\u{FB00}": "ff", "\u{FB01}": "fi", "\u{FB02}": "fl", "\u{FB03}": "ffi", "\u{FB04}": "ffl", "\u{FB05}": "\u{17F}t",
        "\u{FB06}": "st",
    ]
}
