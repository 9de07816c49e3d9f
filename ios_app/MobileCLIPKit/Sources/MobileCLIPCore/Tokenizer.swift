import Foundation

/// Captions to token ids with CLIP's vocabulary (Radford et al. 2021, arXiv 2103.00020, section 2.4), equal to the Python reference's.
public struct Tokenizer: Sendable {
    /// Ids in a row, padding included.
    public let contextLength: Int
    private let padID: Int32
    private let startID: Int32
    private let endID: Int32
    private let vocabulary: [String: Int32]
    private let ranks: [Pair: Int]

    private struct Pair: Hashable, Sendable {
        let first: String
        let second: String
    }

    private static let start = "<start_of_text>"
    private static let end = "<end_of_text>"
    private static let wordEnd = "</w>"
    private static let specials = [start, end, "'s", "'t", "'re", "'ve", "'m", "'ll", "'d"]
    private static let byteSymbols: [String] = {
        var next: UInt32 = 0x100
        return (0..<256).map { (byte: UInt32) -> String in
            let printable = (0x21...0x7E).contains(byte) || (0xA1...0xAC).contains(byte) || (0xAE...0xFF).contains(byte)
            if !printable { next += 1 }
            return Unicode.Scalar(printable ? byte : next - 1).map(String.init) ?? ""
        }
    }()

    /// Read the tokenizer file of a bundle.
    public init(contentsOf url: URL) throws {
        let data: Data
        do {
            data = try Data(contentsOf: url)
        } catch {
            throw MobileCLIPError("\(url.lastPathComponent) cannot be read (\(error.localizedDescription)); copy the bundle again")
        }
        try self.init(JSON(parsing: data))
    }

    init(_ document: JSON) throws {
        func unusable(_ reason: String) -> MobileCLIPError {
            MobileCLIPError("the tokenizer file is none that this app knows (\(reason)); export the bundle again")
        }
        guard let model = document["model"], model["type"] == .string("BPE"), model["end_of_word_suffix"] == .string(Tokenizer.wordEnd),
              case .object(let tokens)? = model["vocab"], case .array(let merges)? = model["merges"]
        else { throw unusable("its model is not CLIP's") }
        var vocabulary: [String: Int32] = [:]
        vocabulary.reserveCapacity(tokens.count)
        for (token, id) in tokens {
            guard case .number(let text) = id, let number = Int32(text) else { throw unusable("an id is no number") }
            vocabulary[token] = number
        }
        guard let startID = vocabulary[Tokenizer.start], let endID = vocabulary[Tokenizer.end] else { throw unusable("it has another start or end") }
        guard Tokenizer.byteSymbols.allSatisfy({ vocabulary[$0] != nil && vocabulary[$0 + Tokenizer.wordEnd] != nil }) else {
            throw unusable("a byte has no id")
        }
        var ranks: [Pair: Int] = [:]
        ranks.reserveCapacity(merges.count)
        for (rank, merge) in merges.enumerated() {
            guard case .array(let parts) = merge, parts.count == 2, case .string(let first) = parts[0], case .string(let second) = parts[1],
                  vocabulary[first + second] != nil
            else { throw unusable("a merge has no id") }
            ranks[Pair(first: first, second: second)] = rank
        }
        guard case .number(let length)? = document["truncation"]?["max_length"], let contextLength = Int(length), (2...65_536).contains(contextLength),
              case .number(let pad)? = document["padding"]?["pad_id"], let padID = Int32(pad)
        else { throw unusable("it has no length") }
        self.vocabulary = vocabulary
        self.ranks = ranks
        self.startID = startID
        self.endID = endID
        self.contextLength = contextLength
        self.padID = padID
    }

    /// The row of a caption: start, its ids, end, padding; what is too long is cut, and the last id is the end all the same.
    public func encode(_ text: String) -> [Int32] {
        let found = ids(text)
        return found + [Int32](repeating: padID, count: contextLength - found.count)
    }

    /// The ids of a caption from start to end, without padding.
    public func ids(_ text: String) -> [Int32] {
        var ids = [startID]
        for word in Tokenizer.words(in: Tokenizer.lowercased(TextCleanup.clean(text))) {
            ids += idsOfWord(word)
            if ids.count >= contextLength { break }
        }
        return ids.prefix(contextLength - 1) + [endID]
    }

    private func idsOfWord(_ word: [Unicode.Scalar]) -> [Int32] {
        let text = TextCleanup.string(word)
        if text == Tokenizer.start { return [startID] }
        if text == Tokenizer.end { return [endID] }
        return merged(text).compactMap { vocabulary[$0] }
    }

    /// Byte-pair encoding: the pair of the lowest rank is joined everywhere, until no pair has a rank.
    private func merged(_ word: String) -> [String] {
        var parts = word.utf8.map { Tokenizer.byteSymbols[Int($0)] }
        guard !parts.isEmpty else { return [] }
        parts[parts.count - 1] += Tokenizer.wordEnd
        while parts.count > 1 {
            var best: (rank: Int, pair: Pair)?
            for i in 0..<parts.count - 1 {
                let pair = Pair(first: parts[i], second: parts[i + 1])
                if let rank = ranks[pair], rank < best?.rank ?? Int.max { best = (rank, pair) }
            }
            guard let pair = best?.pair else { break }
            var joined: [String] = []
            var i = 0
            while i < parts.count {
                if i + 1 < parts.count, parts[i] == pair.first, parts[i + 1] == pair.second {
                    joined.append(pair.first + pair.second)
                    i += 2
                } else {
                    joined.append(parts[i])
                    i += 1
                }
            }
            parts = joined
        }
        return parts
    }

    /// CLIP's split: the special names, contractions, letters, single digits, and runs of everything else but white space.
    static func words(in text: [Unicode.Scalar]) -> [[Unicode.Scalar]] {
        var words: [[Unicode.Scalar]] = []
        var at = 0
        func end(of kind: (Unicode.Scalar) -> Bool) -> Int {
            text[at...].firstIndex { !kind($0) } ?? text.count
        }
        while at < text.count {
            let next: Int
            if let special = specials.first(where: { matches(text, at, $0) }) {
                next = at + special.unicodeScalars.count
            } else if isLetter(text[at]) {
                next = end(of: isLetter)
            } else if isNumber(text[at]) {
                next = at + 1
            } else if isLeftOut(text[at]) {
                at += 1
                continue
            } else {
                next = end { !isLetter($0) && !isNumber($0) && !isLeftOut($0) }
            }
            words.append(Array(text[at..<next]))
            at = next
        }
        return words
    }

    /// Case is ignored there, on text in lower case: a long s matches an s.
    private static func matches(_ text: [Unicode.Scalar], _ at: Int, _ word: String) -> Bool {
        let wanted = Array(word.unicodeScalars)
        let found = text[at...].prefix(wanted.count)
        let longS: Unicode.Scalar = "\u{17F}"
        return found.elementsEqual(wanted) { (scalar: Unicode.Scalar, other: Unicode.Scalar) -> Bool in
            scalar == other || (scalar == longS && other == "s")
        }
    }

    /// White space; and U+0345, which is no letter but would be one in capitals, so that the pattern, which ignores case, knows it nowhere.
    private static func isLeftOut(_ scalar: Unicode.Scalar) -> Bool { TextCleanup.isSpace(scalar) || scalar == "\u{345}" }

    private static func isLetter(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.properties.generalCategory {
        case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter: return true
        default: return false
        }
    }

    private static func isNumber(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.properties.generalCategory {
        case .decimalNumber, .letterNumber, .otherNumber: return true
        default: return false
        }
    }

    /// Lower case by Unicode's full mapping, with the sigma at the end of a word (Unicode, SpecialCasing).
    static func lowercased(_ text: [Unicode.Scalar]) -> [Unicode.Scalar] {
        var result: [Unicode.Scalar] = []
        result.reserveCapacity(text.count)
        for (i, scalar) in text.enumerated() {
            if scalar == "\u{3A3}" {
                let before = text[..<i].last { !$0.properties.isCaseIgnorable }
                let after = text[(i + 1)...].first { !$0.properties.isCaseIgnorable }
                let final = before?.properties.isCased == true && after?.properties.isCased != true
                result.append(final ? "\u{3C2}" : "\u{3C3}")
            } else {
                result += scalar.properties.lowercaseMapping.unicodeScalars
            }
        }
        return result
    }
}
