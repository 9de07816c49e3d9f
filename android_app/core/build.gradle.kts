plugins {
    alias(libs.plugins.kotlin.jvm)
    alias(libs.plugins.kotlin.serialization)
}

kotlin {
    jvmToolchain(17)
    compilerOptions.allWarningsAsErrors = true
}

dependencies {
    api(libs.serialization.json)
    testImplementation(libs.kotlin.test.junit)
    testImplementation(libs.junit)
}

tasks.test {
    systemProperty("conformance", rootDir.resolve("../conformance").path)
    systemProperty("tokenizer", providers.gradleProperty("tokenizer").getOrElse("tokenizer.json"))
}
